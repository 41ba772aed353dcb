// Package load measures the built commands under load.
package load
