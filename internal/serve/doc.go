// Package serve is the HTTP API with which an orchestrator runs steps.
//
// Existing clients of the code runner call POST /api/coderunner/run. /executions does the same asynchronously: submit,
// get, watch, cancel. openapi.json describes the whole API.
//
// The caller determines for which business and account a step acts: [Callers] authenticates callers, and the identity
// is the caller's own, or comes from the request of a trusted caller.
package serve
