package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// interval is how often a program is looked at. Memory that no cgroup counts can grow by about 100 MB in that time.
const interval = 25 * time.Millisecond

// clockTick is the unit of times in /proc/PID/stat; the kernel's interface has it fixed at 100 a second.
const clockTick = 10 * time.Millisecond

var pageSize = int64(os.Getpagesize())

// usage is what a process tree uses, and has used at most.
type usage struct {
	memory, peakMemory       int64
	processes, peakProcesses int
	cpu                      time.Duration
}

// monitor watches the processes below a first process.
type monitor struct {
	limits Limits
	// counted says that a cgroup enforces the memory limit.
	counted bool
	group   *group
	// overLimit and nearMemory are those of the Spec.
	overLimit, nearMemory func()
	// warning is held while nearMemory runs, and guards margin, the memory left in bytes at which it is called next.
	warning sync.Mutex
	margin  int64

	// begun is closed when the program is no longer idle.
	begun chan struct{}
	begin sync.Once

	mu sync.Mutex
	// leader is the first process; 0 until there is one.
	leader int
	used   usage
	// before is the processor time that does not count, see Process.LimitCPU.
	before time.Duration
	// charged is processor time of others that counts too, see Process.ChargeCPU.
	charged time.Duration
	// over is the limit that was exceeded; the program has been killed for it.
	memoryOver, cpuOver bool
}

// nearest is the memory left in bytes at which a program is near its limit, if that is more than an eighth of the limit: what a
// fast one fills between some looks.
const nearest = 64 * mib

// leastMargin is the memory left in bytes below which no more warnings are given.
const leastMargin = mib

func newMonitor(spec Spec, limits Limits, g *group) *monitor {
	m := &monitor{
		limits: limits, counted: g.memory != "", group: g, overLimit: spec.OverLimit, nearMemory: spec.NearMemory,
		margin: max(limits.Memory/8, min(nearest, limits.Memory/2)), begun: make(chan struct{}),
	}
	if !spec.Idle {
		m.leaveIdle()
	}
	return m
}

// leaveIdle has the program be watched.
func (m *monitor) leaveIdle() { m.begin.Do(func() { close(m.begun) }) }

// follow tells which first process to look at.
func (m *monitor) follow(leader int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader = leader
}

// watch looks until done is closed, from when the program is not idle any more, and calls kill once a limit is exceeded.
func (m *monitor) watch(done <-chan struct{}, kill func()) {
	defer func() { m.warning.Lock() }() // waits for a warning that is under way; no other follows
	select {
	case <-done:
		return
	case <-m.begun:
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			if m.look() {
				// Where no cgroup holds the memory, more would be used meanwhile.
				if _, memoryOver, _ := m.seen(); m.overLimit != nil && (m.counted || !memoryOver) {
					m.overLimit()
				}
				kill()
				return
			}
		}
	}
}

// limitCPU sets the limit on processor time, counted from now on, and has the program be watched.
func (m *monitor) limitCPU(limit time.Duration) {
	defer m.leaveIdle()
	m.look()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before, m.limits.CPU = m.used.cpu, limit
}

// chargeCPU counts processor time that something else spent on the program.
func (m *monitor) chargeCPU(used time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.charged += used
}

// seen is what the looks came to. LimitCPU may take one until the very end.
func (m *monitor) seen() (used usage, memoryOver, cpuOver bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, m.memoryOver, m.cpuOver
}

// counts is how much of a processor time of the whole program's life counts.
func (m *monitor) counts(cpu time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, cpu-m.before)
}

// look takes one sample and reports whether a limit is exceeded.
func (m *monitor) look() bool {
	m.mu.Lock()
	leader := m.leader
	m.mu.Unlock()
	if leader <= 0 {
		return false
	}
	tree := descendants(leader)
	var now usage
	for _, pid := range tree {
		stat, ok := readStat(pid)
		if !ok {
			continue
		}
		now.processes += stat.threads
		now.memory += stat.memory
		now.cpu += stat.own + stat.waited
	}
	if stat, ok := readStat(leader); ok {
		// Of the orphans that it has reaped.
		now.cpu += stat.waited
	}
	if now.memory > m.limits.Memory && !m.counted {
		// What processes share was counted for each of them; the exact sum costs more.
		now.memory = proportional(tree)
	}
	m.warn(now.memory)
	m.mu.Lock()
	defer m.mu.Unlock()
	now.peakMemory = max(m.used.peakMemory, now.memory)
	now.peakProcesses = max(m.used.peakProcesses, now.processes)
	now.cpu = max(now.cpu, m.used.cpu)
	m.used = now
	m.memoryOver = m.memoryOver || m.group.outOfMemory() || (!m.counted && now.memory > m.limits.Memory)
	m.cpuOver = m.cpuOver || (m.limits.CPU > 0 && now.cpu-m.before+m.charged > m.limits.CPU)
	return m.memoryOver || m.cpuOver
}

// warn calls nearMemory when that is due; resident is the memory of the processes.
func (m *monitor) warn(resident int64) {
	if m.nearMemory == nil {
		return
	}
	if m.counted {
		resident = m.group.used()
	}
	if !m.warning.TryLock() {
		return
	}
	left := m.limits.Memory - resident
	if left > m.margin || m.margin < leastMargin {
		m.warning.Unlock()
		return
	}
	m.margin = left / 2
	routine.Go(func() {
		defer m.warning.Unlock()
		m.nearMemory()
	})
}

// descendants lists the processes below one, by the kernel's lists of children. A process that moves up because its
// parent died may be missed or seen twice in one look.
func descendants(root int) []int {
	var found []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", queue[0]))
		if err != nil {
			continue
		}
		for _, task := range tasks {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", queue[0], task.Name()))
			if err != nil {
				continue
			}
			for _, field := range bytes.Fields(children) {
				if pid, err := strconv.Atoi(string(field)); err == nil {
					found, queue = append(found, pid), append(queue, pid)
				}
			}
		}
	}
	return found
}

// The fields of /proc/PID/stat after the command's name, see proc_pid_stat(5).
const (
	statTime    = 11 // utime, stime, cutime, cstime
	statThreads = 17
	statRSS     = 21
)

// stat is what /proc/PID/stat says of a process.
type stat struct {
	memory      int64
	threads     int
	own, waited time.Duration // processor time, its own and that of the children it has waited for
}

func readStat(pid int) (stat, bool) {
	found, ok := readStatFile(fmt.Sprintf("/proc/%d/stat", pid))
	if !ok || found.memory > 0 || found.threads < 2 {
		return found, ok
	}
	// The first thread has ended: the memory of the process is that of any other.
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range tasks {
		if task, ok := readStatFile(path); ok {
			found.memory = max(found.memory, task.memory)
		}
	}
	return found, true
}

func readStatFile(path string) (stat, bool) {
	content, err := os.ReadFile(path)
	if err != nil {
		return stat{}, false
	}
	// The name before may contain anything, parentheses and spaces included.
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) <= statRSS {
		return stat{}, false
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(fields[i], 10, 64); return n }
	return stat{
		memory:  number(statRSS) * pageSize,
		threads: int(number(statThreads)),
		own:     time.Duration(number(statTime)+number(statTime+1)) * clockTick,
		waited:  time.Duration(number(statTime+2)+number(statTime+3)) * clockTick,
	}, true
}

// proportional is the resident memory of processes with what they share counted once.
func proportional(pids []int) int64 {
	var total int64
	for _, pid := range pids {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			// Gone, or out of reach; then all of its memory counts.
			stat, _ := readStat(pid)
			total += stat.memory
			continue
		}
		for line := range strings.Lines(string(content)) {
			if value, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
				total += n << 10
			}
		}
	}
	return total
}
