// Package runner executes one Code Step: somebody else's Python, once, under limits.
//
// An [Execution] says what to run: the script, its inputs, the outputs it declares, the secrets it was granted and
// where its local proxy listens. [Runner.Run] starts a Python process, hands it the job over an inherited socket,
// collects what comes back until the step ends or a limit does, leaves no process behind, and returns a [Result] that
// marshals to the body existing clients of the code runner expect.
//
// A step that raises, loops, eats memory or kills itself is a Result whose [Outcome] says so. An error from Run is the
// sidecar's own failure ([ErrNoPython], [ErrHarness], ...): nothing can be said about the step.
//
// Requests are checked before anything is started: [LoadStep] reads a step's folder, [DecodeInputs], [ParseInput] and
// their siblings turn what a person or a client wrote into typed [Value]s, and report every mistake at once as
// [FieldErrors], keyed by field.
package runner
