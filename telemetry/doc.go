// Package telemetry is how an execution is seen from outside: its trace, its
// metrics, its log, and the redaction that everything written for people or
// collectors passes through.
//
// [Start] reads the standard OTEL_* variables. Without an exporter or an
// endpoint among them nothing is started, and what is recorded costs nothing:
// every method works on what [Start] returned then.
//
// [Telemetry.Execution] begins the trace of one execution. Phases and calls
// are told to the [Execution] as they happen, and are counted there too;
// [Metrics] takes what belongs to no single execution. [NewLogger] makes the
// log whose records name the execution and the trace of their context.
//
// Exporting never delays or fails an execution: spans wait in a bounded queue,
// what does not fit is dropped and counted, and a collector that does not
// answer is mentioned in the log once a minute.
//
// It knows nothing of keys, proxies or steps, so that every other package may
// use it.
package telemetry
