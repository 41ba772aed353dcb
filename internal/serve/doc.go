// Package serve is the API by which an orchestrator has steps run.
//
// POST /api/coderunner/run is what existing clients of the code runner call. /executions does the same without holding a
// connection: submit, look, watch, cancel. openapi.json describes all of it.
//
// Who calls decides for whom a step acts: [Callers] authenticates, and the business and the account come from the caller's
// own identity, or from the request of a caller that is trusted to name them.
package serve
