// Package observed tests the telemetry that a real OpenTelemetry Collector receives from the built binary. Only this
// package imports the collector's modules, so that they are compiled once.
package observed
