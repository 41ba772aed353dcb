// Package phases lists the parts that the time of an execution has. Traces, metrics, the log, the HTTP API, the page and `run -v`
// name them alike.
package phases

import "slices"

// Phase is a part of an execution's time. Each is a span of its trace.
type Phase string

// The phases. Spawn is over at once where a warm Python is there; Mint overlaps with Import.
const (
	Queue    Phase = "queue"    // waiting for a free slot
	Spawn    Phase = "spawn"    // until a sandboxed Python runs
	Mint     Phase = "mint"     // the signed key, and its record in Redis
	Import   Phase = "import"   // until the step's first line
	Step     Phase = "step"     // the step's own code
	Teardown Phase = "teardown" // until nothing of the step's processes is left
	Revoke   Phase = "revoke"   // what was opened for the execution is closed, the key among it
)

var all = []Phase{Queue, Spawn, Mint, Import, Step, Teardown, Revoke}

// All returns the phases in the order in which they begin.
func All() []Phase { return slices.Clone(all) }
