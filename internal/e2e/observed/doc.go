// Package observed holds the tests of what a real OpenTelemetry Collector receives from the built binary. The collector's
// modules are imported here alone, so that they are compiled once.
package observed
