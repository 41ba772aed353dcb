// Package serve is the HTTP API with which an orchestrator runs steps.
//
// Existing clients of the code runner call POST /api/coderunner/run. /executions does the same asynchronously: submit,
// get, watch, cancel. openapi.json describes the whole API.
//
// The caller determines whom a step acts for: [Callers] authenticates, and the business and the account come from the
// caller's own identity, or from the request of a trusted caller.
package serve
