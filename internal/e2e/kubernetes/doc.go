// Package kubernetes checks the manifests of examples/kubernetes against Kubernetes' own types and the flags of the
// commands.
package kubernetes
