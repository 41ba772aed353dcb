package runner

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

const (
	// stacksWait is how long the runner waits for the stacks of a step before it ends it, stacksPause how long it waits for more.
	stacksWait, stacksPause = 500 * time.Millisecond, 50 * time.Millisecond
	// lastStacks is for what a process that is gone has written.
	lastStacks = 10 * time.Millisecond
	// maxStacks is the size in bytes up to which stacks are read.
	maxStacks = 256 << 10
	// maxSourceLine is how many bytes of a line of the step's source are shown for each frame in it.
	maxSourceLine = 200
)

// places keeps where the threads of a step were when it was ended, and shortly before, as faulthandler writes it. It is safe for
// concurrent use.
type places struct {
	socket *os.File

	mu    sync.Mutex
	begun bool // the step runs, and answers
	// last is of the moment before the step was ended, or of its crash; nearMemory of the last time that it came near its limit on
	// memory. Empty when the step did not answer.
	last, nearMemory string
}

// begin says that the step runs.
func (p *places) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = true
}

// ask has the step write where it is, before it is ended; only the first answer is kept.
func (p *places) ask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun && p.last == "" {
		p.last = askStacks(p.socket)
	}
}

// askNearMemory has the step write where it is when it is near its limit on memory.
func (p *places) askNearMemory() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.begun {
		return
	}
	if answer := askStacks(p.socket); answer != "" {
		p.nearMemory = answer
	}
}

// hear reads what a step that is gone has written about its crash.
func (p *places) hear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == "" {
		p.last = readStacks(p.socket, lastStacks)
	}
}

// askStacks has a step write where its threads are, and returns what it wrote; empty when it does not.
func askStacks(socket *os.File) string {
	readStacks(socket, lastStacks) // children that crashed
	if _, err := socket.Write([]byte{0}); err != nil {
		return ""
	}
	return readStacks(socket, stacksWait)
}

// readStacks reads what a step writes, and stops when it has paused: nothing marks the end.
func readStacks(socket *os.File, wait time.Duration) string {
	var text []byte
	buffer := make([]byte, 16<<10)
	end := time.Now().Add(wait + stacksWait)
	for len(text) < maxStacks {
		deadline := time.Now().Add(wait)
		if deadline.After(end) {
			deadline = end // a step that writes a little from time to time would live on
		}
		_ = socket.SetReadDeadline(deadline)
		n, err := socket.Read(buffer)
		text = append(text, buffer[:n]...)
		if err != nil {
			break
		}
		wait = min(wait, stacksPause)
	}
	return string(text)
}

// thread is one thread of a step.
type thread struct {
	id, name string
	// frames are the step's own, the outermost first.
	frames []frame
}

type frame struct {
	line     int
	function string
}

// What faulthandler writes; since Python 3.14 with the names of threads.
var (
	threadLine = regexp.MustCompile(`^(?:Current thread|Thread) 0x0*([0-9a-f]+)(?: \[(.*)\])? \(most recent call first\):$`)
	frameLine  = regexp.MustCompile(`^  File "(.*)", line (\d+) in (.*)$`)
	crashLine  = "Fatal Python error: "
)

// crashes are the signals that faulthandler writes stacks at.
var crashes = []syscall.Signal{syscall.SIGSEGV, syscall.SIGFPE, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGILL}

// parseStacks reads the threads from what faulthandler wrote, the main one first.
func parseStacks(text, main string) []thread {
	if i := strings.LastIndex(text, crashLine); i >= 0 {
		text = text[i:] // children may have crashed before
	}
	var threads []thread
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := threadLine.FindStringSubmatch(line); m != nil {
			t := thread{id: m[1], name: m[2]}
			if t.id == main {
				t.name = ""
			}
			threads = append(threads, t)
		}
		if m := frameLine.FindStringSubmatch(line); m != nil && len(threads) > 0 && m[1] == ScriptName {
			number, _ := strconv.Atoi(m[2])
			last := &threads[len(threads)-1]
			last.frames = append(last.frames, frame{number, m[3]})
		}
	}
	for i := range threads {
		slices.Reverse(threads[i].frames)
		if threads[i].id == main {
			threads[0], threads[i] = threads[i], threads[0]
		}
	}
	return threads
}

// where tells where the threads of a step were, by its own lines; stacks is what faulthandler wrote.
func (a *attempt) where(stacks string) string {
	threads := parseStacks(stacks, a.mainThread)
	names := map[string]string{}
	if a.ending != nil {
		for _, waited := range a.ending.Threads {
			names[waited[0]] = waited[1]
		}
	}
	lines := strings.Split(string(a.execution.Script), "\n")
	var text strings.Builder
	for _, t := range threads {
		if name, ok := names[t.id]; ok {
			t.name = name
		}
		_, waitedFor := names[t.id]
		if len(t.frames) == 0 && !waitedFor {
			continue // a worker that waits, say, or the main thread while it waits for the others
		}
		if text.Len() > 0 {
			text.WriteByte('\n')
		}
		switch {
		case t.id == a.mainThread:
			text.WriteString("Main thread (most recent call last):\n")
		case t.name != "":
			fmt.Fprintf(&text, "Thread %q (most recent call last):\n", t.name)
		default:
			text.WriteString("Another thread (most recent call last):\n")
		}
		for _, f := range t.frames {
			fmt.Fprintf(&text, "  File %q, line %d, in %s\n", ScriptName, f.line, f.function)
			if f.line > 0 && f.line <= len(lines) {
				fmt.Fprintf(&text, "    %s\n", cutString(strings.TrimSpace(lines[f.line-1]), maxSourceLine))
			}
		}
		if len(t.frames) == 0 {
			text.WriteString("  in no line of the step's own\n")
		}
	}
	return text.String()
}

// timeout says what was still running at the step's limit.
func (a *attempt) timeout() verdict {
	v := verdict{outcome: outcomes.Timeout, detail: a.where(a.places.last)}
	limit := a.limits.Wall
	if a.ending == nil {
		v.message = fmt.Sprintf("timeout: the step was still running at its limit of %s", limit)
		return v
	}
	body := "the step's body had ended"
	if a.ending.Error != "" {
		body += " with " + a.ending.Error
		v.detail = strings.TrimSuffix(a.ending.Detail, "\n") + "\n\n" + v.detail
	}
	v.message = fmt.Sprintf("timeout: %s, and %s still running at its limit of %s", body, a.running(), limit)
	return v
}

// running names what the end of the step was waiting for.
func (a *attempt) running() string {
	if a.ending.Handlers {
		return "an exit handler was"
	}
	present := map[string]bool{}
	for _, t := range parseStacks(a.places.last, a.mainThread) {
		present[t.id] = true
	}
	var names []string
	for _, waited := range a.ending.Threads {
		if len(present) == 0 || present[waited[0]] {
			names = append(names, strconv.Quote(waited[1]))
		}
	}
	switch len(names) {
	case 0:
		return "one of its threads was"
	case 1:
		return "its thread " + names[0] + " was"
	}
	return "its threads " + strings.Join(names, ", ") + " were"
}
