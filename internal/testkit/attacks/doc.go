// Package attacks is the corpus of everything that is tried against the sidecar: what a step runs, what a caller sends, and what an
// API answers. It is data, with what must hold for each; the tests of several packages walk through it.
package attacks
