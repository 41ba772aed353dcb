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
	// stacksWait is how long the runner waits for a step's stacks before it kills the step, stacksPause how long it
	// waits for more data.
	stacksWait, stacksPause = 500 * time.Millisecond, 50 * time.Millisecond
	// lastStacks is the wait for data that an ended process has written.
	lastStacks = 10 * time.Millisecond
	// maxStacks is the maximal size of stacks, in bytes.
	maxStacks = 256 << 10
	// maxSourceLine is how many bytes of a source line are shown for each frame.
	maxSourceLine = 200
)

// places keeps the stacks of a step's threads at its end and shortly before, as faulthandler writes them. It is safe
// for concurrent use.
type places struct {
	socket *os.File

	mu    sync.Mutex
	begun bool // the step runs and can report its stacks
	// last has the stacks just before the step was killed, or at its crash; nearMemory those when it last came near its
	// memory limit. They are empty if the step did not report any.
	last, nearMemory string
}

// begin records that the step runs.
func (p *places) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = true
}

// ask requests the step's stacks before it is killed; only the first response is kept.
func (p *places) ask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun && p.last == "" {
		p.last = askStacks(p.socket)
	}
}

// askNearMemory requests the step's stacks when it is near its memory limit.
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

// readCrash reads the stacks that an ended step has written about its crash.
func (p *places) readCrash() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == "" {
		p.last = readStacks(p.socket, lastStacks)
	}
}

// askStacks requests the stacks of a step's threads and returns them, or "" if the step does not respond.
func askStacks(socket *os.File) string {
	readStacks(socket, lastStacks) // discard the stacks of children that crashed
	if _, err := socket.Write([]byte{0}); err != nil {
		return ""
	}
	return readStacks(socket, stacksWait)
}

// readStacks reads stacks until the step pauses, because no mark shows their end.
func readStacks(socket *os.File, wait time.Duration) string {
	var text []byte
	buffer := make([]byte, 16<<10)
	end := time.Now().Add(wait + stacksWait)
	for len(text) < maxStacks {
		deadline := time.Now().Add(wait)
		if deadline.After(end) {
			deadline = end // otherwise a step that keeps writing a little would never be killed
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
	// frames are the step's own frames, outermost first.
	frames []frame
}

type frame struct {
	line     int
	function string
}

// The output of faulthandler; since Python 3.14 with thread names.
var (
	threadLine = regexp.MustCompile(`^(?:Current thread|Thread) 0x0*([0-9a-f]+)(?: \[(.*)\])? \(most recent call first\):$`)
	frameLine  = regexp.MustCompile(`^  File "(.*)", line (\d+) in (.*)$`)
	crashLine  = "Fatal Python error: "
)

// crashes lists the signals at which faulthandler writes stacks.
var crashes = []syscall.Signal{syscall.SIGSEGV, syscall.SIGFPE, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGILL}

// parseStacks parses the threads in faulthandler's output, the main one first.
func parseStacks(text, main string) []thread {
	if i := strings.LastIndex(text, crashLine); i >= 0 {
		text = text[i:] // children may have crashed earlier
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

// where formats the positions of a step's threads in the step's own code; stacks is faulthandler's output.
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
			continue // for example an idle worker, or the main thread while it joins the others
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

// timeout returns the verdict of a step at its limit, with the threads or handlers that were still running.
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

// running names the threads or handlers that the step was waiting for.
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
