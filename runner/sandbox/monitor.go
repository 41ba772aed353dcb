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

// interval is the sampling interval. Without a cgroup, memory can grow by about 100 MB in that time.
const interval = 25 * time.Millisecond

// clockTick is the unit of times in /proc/PID/stat; the kernel fixes it at 100 per second.
const clockTick = 10 * time.Millisecond

var pageSize = int64(os.Getpagesize())

// usage is the current and peak resource usage of a process tree.
type usage struct {
	memory, peakMemory       int64
	processes, peakProcesses int
	cpu                      time.Duration
}

// monitor watches the processes below a first process.
type monitor struct {
	limits Limits
	// counted reports that a cgroup enforces the memory limit.
	counted bool
	group   *group
	// overLimit and nearMemory come from the Spec.
	overLimit, nearMemory func()
	// warning is held while nearMemory runs, and guards margin, the memory left in bytes at which it is called next.
	warning sync.Mutex
	margin  int64

	// begun is closed when the program stops being idle.
	begun chan struct{}
	begin sync.Once

	mu sync.Mutex
	// leader is the first process; 0 until it has started.
	leader int
	used   usage
	// before is the CPU time used before LimitCPU, which does not count.
	before time.Duration
	// charged is the CPU time of other processes that counts too, see Process.ChargeCPU.
	charged time.Duration
	// memoryOver and cpuOver report that the program exceeded the limit and was killed for it.
	memoryOver, cpuOver bool
}

// nearest is the remaining memory in bytes at which a program is near its limit, if that is more than an eighth of the
// limit. A fast program uses it up within a few samples.
const nearest = 64 * mib

// leastMargin is the remaining memory in bytes below which nearMemory is not called again.
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

// leaveIdle starts the sampling of the program.
func (m *monitor) leaveIdle() { m.begin.Do(func() { close(m.begun) }) }

// follow sets the first process of the program.
func (m *monitor) follow(leader int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader = leader
}

// watch waits until the program stops being idle, then takes samples until done is closed. It calls kill when a limit
// is exceeded.
func (m *monitor) watch(done <-chan struct{}, kill func()) {
	defer func() { m.warning.Lock() }() // waits for a running warning and prevents further ones
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
				// Without a cgroup, the program would keep using more memory during the call.
				if _, memoryOver, _ := m.seen(); m.overLimit != nil && (m.counted || !memoryOver) {
					m.overLimit()
				}
				kill()
				return
			}
		}
	}
}

// limitCPU sets the limit on CPU time, counts from now on, and starts the sampling of the program.
func (m *monitor) limitCPU(limit time.Duration) {
	defer m.leaveIdle()
	m.look()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before, m.limits.CPU = m.used.cpu, limit
}

// chargeCPU adds CPU time that another process spent on the program.
func (m *monitor) chargeCPU(used time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.charged += used
}

// seen returns the results of all samples. LimitCPU may still add one at the very end.
func (m *monitor) seen() (used usage, memoryOver, cpuOver bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, m.memoryOver, m.cpuOver
}

// counts returns how much of the program's total CPU time counts towards the limit.
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
	now, tree := sumUsage(leader, descendants, readStat)
	if now.memory > m.limits.Memory && !m.counted {
		// Shared memory was counted for each process; the exact sum is more expensive.
		now.memory = proportional(tree)
	}
	m.warn(now.memory)
	own, _ := m.group.outOfMemory()
	m.mu.Lock()
	defer m.mu.Unlock()
	peak := now.memory
	if peak > m.used.peakMemory && len(tree) > 1 {
		peak = proportional(tree)
	}
	now.peakMemory = max(m.used.peakMemory, peak)
	now.peakProcesses = max(m.used.peakProcesses, now.processes)
	now.cpu = max(now.cpu, m.used.cpu)
	m.used = now
	m.memoryOver = m.memoryOver || own || (!m.counted && now.memory > m.limits.Memory)
	m.cpuOver = m.cpuOver || (m.limits.CPU > 0 && now.cpu-m.before+m.charged > m.limits.CPU)
	return m.memoryOver || m.cpuOver
}

// sumUsage adds up the current usage of the processes below the leader, and returns the processes too. It reads
// parents before their children: a parent that waits for a dead child inherits the child's CPU time, which would count
// twice if the child had been read first.
func sumUsage(leader int, below func(pid int) []int, read func(pid int) (stat, bool)) (usage, []int) {
	var now usage
	if stat, ok := read(leader); ok {
		// The CPU time of orphans that the leader has waited for.
		now.cpu = stat.waited
	}
	tree := below(leader)
	for _, pid := range tree {
		stat, ok := read(pid)
		if !ok {
			continue
		}
		now.processes += stat.threads
		now.memory += stat.memory
		now.cpu += stat.own + stat.waited
	}
	return now, tree
}

// warn calls nearMemory if it is due; resident is the memory of the processes.
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

// descendants lists the processes below one, parents first, from the kernel's lists of children. A process that gets a
// new parent meanwhile, because its own died, may be missing.
func descendants(root int) []int {
	var found []int
	seen := map[int]bool{}
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
				// A child of a thread that ends is moved to another thread of the same process, whose list follows.
				if pid, err := strconv.Atoi(string(field)); err == nil && !seen[pid] {
					seen[pid] = true
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

// stat holds values of /proc/PID/stat.
type stat struct {
	memory      int64
	threads     int
	own, waited time.Duration // CPU time, its own and that of the children it has waited for
}

func readStat(pid int) (stat, bool) {
	found, ok := readStatFile(fmt.Sprintf("/proc/%d/stat", pid))
	if !ok || found.memory > 0 || found.threads < 2 {
		return found, ok
	}
	// The first thread has ended, so read the memory from another thread.
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
	// The name before it may contain anything, including parentheses and spaces.
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

// proportional returns the resident memory of processes, counting shared memory once.
func proportional(pids []int) int64 {
	var total int64
	for _, pid := range pids {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			// It has ended or is not accessible; then all of its memory counts.
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
