// Package telemetry is how an execution is seen from outside: the log, and the
// redaction that everything written for people or collectors passes through.
//
// It knows nothing of keys, proxies or steps, so that every other package may
// use it.
package telemetry
