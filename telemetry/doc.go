// Package telemetry records traces, metrics and logs of executions, and redacts all text that people or collectors
// read.
//
// [Start] reads the standard OTEL_* variables. If they name no exporter and no endpoint, telemetry is off: all methods
// still work, at no cost.
//
// [Telemetry.Execution] begins the trace of one execution. The [Execution] records phases and calls as they happen, and
// counts them in the metrics; [Metrics] records everything that belongs to no single execution. [NewLogger] returns the
// log, whose records name the execution and the trace of their context.
//
// Exporting never delays or fails an execution: spans wait in a bounded queue, which drops and counts spans when it is
// full. A collector that does not answer is logged once a minute.
//
// The package does not depend on keys, proxies or steps, so every other package may use it.
package telemetry
