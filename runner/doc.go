// Package runner executes one Code Step: untrusted Python, once, under limits.
//
// An [Execution] says what to run: the script, its inputs, the outputs it declares, the secrets it was granted and
// where its local proxy listens. [Runner.Run] starts a Python process, hands it the job over an inherited socket,
// collects its messages until the step ends or reaches a limit, leaves no process behind, and returns a [Result], which
// marshals to the body that existing clients of the code runner expect. A step that raises, loops, exhausts its memory
// or kills itself is a Result with the corresponding [Outcome]. An error from Run is the sidecar's own failure
// ([ErrNoPython], [ErrHarness], ...) and says nothing about the step. Requests are validated before anything starts:
// [LoadStep] reads a step's folder; [DecodeInputs], [ParseInput] and their siblings parse text from people and clients
// into typed [Value]s. They report all errors at once as [FieldErrors], keyed by field.
package runner
