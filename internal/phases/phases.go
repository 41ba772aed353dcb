// Package phases lists the phases of an execution's time. Traces, metrics, the log, the HTTP API, the page and `run
// -v` use the same names.
package phases

import "slices"

// Phase is a part of an execution's time, and a span of its trace.
type Phase string

// The phases. Spawn is short if a warm Python is available; Mint overlaps with Import.
const (
	Queue    Phase = "queue"    // waiting for a free slot
	Spawn    Phase = "spawn"    // until a sandboxed Python runs
	Mint     Phase = "mint"     // the signed key, and its record in Redis
	Import   Phase = "import"   // until the step's first line
	Step     Phase = "step"     // the step's own code
	Teardown Phase = "teardown" // until all of the step's processes are gone
	Revoke   Phase = "revoke"   // closing everything opened for the execution, including the key
)

var all = []Phase{Queue, Spawn, Mint, Import, Step, Teardown, Revoke}

// All returns the phases in the order in which they begin.
func All() []Phase { return slices.Clone(all) }
