package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/cgroups"
)

// groups holds the directories of the programs' groups. They are below the sidecar's own group, so that its limits
// apply to them too.
type groups struct {
	unified bool
	// memory and pids are the sidecar's own groups; empty if the controller is unavailable. With v2 both are the
	// same.
	memory, pids string

	mu    sync.Mutex
	swept time.Time
	// busy are the groups of ended programs that could not be removed yet, for example because the kernel has not
	// released a process.
	busy []string
}

// sweepInterval is how often the sidecar removes busy groups, and the groups of dead sidecars.
const sweepInterval = time.Minute

// groupPrefix is the prefix of our groups' names; the sidecar's process ID and a number follow.
const groupPrefix = "kizen-step-"

// findCgroups finds usable controllers, calls miss for the others, and removes the groups of dead sidecars.
func (s *Sandbox) findCgroups(miss func(layer string, err error)) {
	own, err := cgroups.Find()
	if err != nil {
		miss(layerMemoryCgroup, err)
		miss(layerPidsCgroup, err)
		return
	}
	found := &groups{}
	for _, controller := range []struct {
		name, layer string
		dir         *string
	}{{"memory", layerMemoryCgroup, &found.memory}, {"pids", layerPidsCgroup, &found.pids}} {
		if !s.holds(controller.layer) {
			continue
		}
		dir, unified, err := writable(own, controller.name)
		if err != nil {
			miss(controller.layer, err)
			continue
		}
		*controller.dir, found.unified = dir, unified
	}
	found.sweep(time.Now())
	s.groups = found
}

// writable returns the directory in which groups with the controller can be created.
func writable(own cgroups.Own, controller string) (dir string, unified bool, err error) {
	if dir, ok := own[controller]; ok {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			return "", false, fmt.Errorf("%s is not writable", dir)
		}
		return dir, false, nil
	}
	dir, ok := own[""]
	if !ok {
		return "", false, errors.New("no cgroup hierarchy is mounted")
	}
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return "", false, fmt.Errorf("read its controllers: %w", err)
	}
	if !hasField(available, controller) {
		return "", false, fmt.Errorf("the %s controller is not available in %s", controller, dir)
	}
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return "", false, fmt.Errorf("read its subtree's controllers: %w", err)
	}
	if !hasField(enabled, controller) {
		// The kernel refuses this while the group itself contains processes, such as the sidecar.
		if err := write(dir, "cgroup.subtree_control", "+"+controller); err != nil {
			return "", false,
				fmt.Errorf("%s does not delegate the %s controller (with systemd: Delegate=yes and DelegateSubgroup=): %w", dir,
					controller, err)
		}
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return "", false, fmt.Errorf("%s is not writable", dir)
	}
	return dir, true, nil
}

func hasField(list []byte, field string) bool {
	for _, f := range bytes.Fields(list) {
		if string(f) == field {
			return true
		}
	}
	return false
}

// sweep removes the groups of dead sidecars, and the busy groups of this one, at most once per interval. The kernel
// refuses to remove a group in use, so this is safe. Glob fails if no descriptor is left; the next sweep then removes
// the rest.
func (c *groups) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.swept) < sweepInterval {
		return
	}
	c.swept = now
	c.busy = slices.DeleteFunc(c.busy, removed)
	for _, dir := range []string{c.memory, c.pids} {
		left, err := filepath.Glob(filepath.Join(dir, groupPrefix+"*"))
		if dir == "" || err != nil {
			continue
		}
		for _, group := range left {
			owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(group), groupPrefix), "-")
			if pid, err := strconv.Atoi(owner); err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
				removed(group)
			}
		}
	}
}

// removed removes a group, and reports whether it is gone.
func removed(dir string) bool {
	err := unix.Rmdir(dir)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// tcpShare is the part of the memory limit that the buffers of sockets may use in addition, with cgroup v1:
// limit/tcpShare.
const tcpShare = 4

// group holds the cgroups of one program: one directory with v2, one for each controller with v1.
type group struct {
	parents      *groups
	memory, pids string // empty if not counted
	most         int64  // the limit of memory in bytes
	dir          *os.File
}

// create creates the groups of the n-th program and sets their limits. reserve is the number of processes and threads
// that the program's first process needs. If no controller is available, the group is empty.
func (c *groups) create(n uint32, limits Limits, reserve int) (*group, error) {
	g := &group{parents: c}
	if c == nil {
		return g, nil
	}
	c.sweep(time.Now())
	name := fmt.Sprintf("%s%d-%d", groupPrefix, os.Getpid(), n)
	for _, part := range []struct {
		parent string
		dir    *string
	}{{c.memory, &g.memory}, {c.pids, &g.pids}} {
		if part.parent == "" {
			continue
		}
		dir := filepath.Join(part.parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !(c.unified && errors.Is(err, fs.ErrExist)) {
			g.remove()
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		*part.dir = dir
	}
	if err := g.limit(limits, reserve); err != nil {
		g.remove()
		return nil, fmt.Errorf("limit cgroup: %w", err)
	}
	return g, nil
}

func (g *group) limit(limits Limits, reserve int) error {
	if g.pids != "" {
		if err := write(g.pids, "pids.max", strconv.Itoa(limits.Processes+reserve)); err != nil {
			return err
		}
	}
	if g.memory == "" {
		return nil
	}
	g.most = limits.Memory
	memory := strconv.FormatInt(limits.Memory, 10)
	if !g.parents.unified {
		if err := write(g.memory, "memory.limit_in_bytes", memory); err != nil {
			return err
		}
		// Memory plus swap; the file is absent if swap is not counted.
		if err := optional(write(g.memory, "memory.memsw.limit_in_bytes", memory)); err != nil {
			return err
		}
		// The kernel counts the buffers of TCP and UDP separately, and only if they have a limit.
		return optional(write(g.memory, "memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(limits.Memory/tcpShare, 10)))
	}
	if err := write(g.memory, "memory.max", memory); err != nil {
		return err
	}
	if err := optional(write(g.memory, "memory.oom.group", "1")); err != nil {
		return err
	}
	if err := optional(write(g.memory, "memory.swap.max", "0")); err != nil {
		return err
	}
	dir, err := os.Open(g.memory)
	if err != nil {
		return err
	}
	g.dir = dir
	return nil
}

// enter makes the next process that this thread starts a member. With v2, the kernel does it. With v1, the thread
// itself enters the group and returns with leave, because moving another process waits for all processors of the
// machine (13 ms).
func (g *group) enter(attr *syscall.SysProcAttr) error {
	if g.dir != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.dir.Fd())
		return nil
	}
	for _, dir := range []string{g.memory, g.pids} {
		if dir == "" {
			continue
		}
		if err := write(dir, "tasks", "0"); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// leave undoes enter.
func (g *group) leave() error {
	if g.parents == nil || g.parents.unified {
		return nil
	}
	for _, dir := range []string{g.parents.memory, g.parents.pids} {
		if dir == "" {
			continue
		}
		if err := write(dir, "tasks", "0"); err != nil {
			return fmt.Errorf("leave cgroup: %w", err)
		}
	}
	return nil
}

// members opens the files with which a fork server makes a fork a member: with v2 the group's directory (into is
// true), with v1 the group's "tasks" files, each followed by that of the server's group. The caller closes them.
func (g *group) members(server *group) (files []*os.File, into bool, err error) {
	if g.dir != nil {
		file, err := duplicate(g.dir)
		if err != nil {
			return nil, false, err
		}
		return []*os.File{file}, true, nil
	}
	for _, dir := range []string{g.memory, server.memory, g.pids, server.pids} {
		if dir == "" {
			continue
		}
		file, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			return files, false, fmt.Errorf("open cgroup: %w", err)
		}
		files = append(files, file)
	}
	return files, false, nil
}

// outOfMemory reports whether the kernel killed a member because of the group's own memory limit (own), or because a
// group above it or the machine ran out of memory (above).
func (g *group) outOfMemory() (own, above bool) {
	if g.memory == "" {
		return false, false
	}
	if g.parents.unified {
		if counter(g.memory, "memory.events", "oom_kill") == 0 {
			return false, false
		}
		own = counter(g.memory, "memory.events", "oom") > 0 || g.full()
		return own, !own
	}
	if counter(g.memory, "memory.oom_control", "oom_kill") == 0 {
		return false, false
	}
	// Both counters have the same limit; it depends on the kernel's version which one reaches it first.
	own = number(g.memory, "memory.failcnt") > 0 || number(g.memory, "memory.memsw.failcnt") > 0 || g.full()
	return own, !own
}

// full reports whether the group's memory was ever close to the limit. It is needed because some kernels do not count
// the failed allocation of many pages.
func (g *group) full() bool { return g.peak() > g.most-mib }

// used returns the group's memory in bytes, or 0 if it cannot be read.
func (g *group) used() int64 {
	if g.parents.unified {
		return number(g.memory, "memory.current")
	}
	return number(g.memory, "memory.usage_in_bytes")
}

// peak returns the peak of the group's memory in bytes, or 0 if the kernel does not report it (v2 before Linux 5.19).
func (g *group) peak() int64 {
	switch {
	case g.memory == "":
		return 0
	case g.parents.unified:
		return number(g.memory, "memory.peak")
	}
	return number(g.memory, "memory.max_usage_in_bytes")
}

// refused reports whether a member failed to start a process because of the limit on processes.
func (g *group) refused() bool {
	return g.pids != "" && counter(g.pids, "pids.events", "max") > 0
}

// remove removes the groups. Their members must be dead.
func (g *group) remove() {
	if g.dir != nil {
		_ = g.dir.Close()
	}
	for _, dir := range []string{g.memory, g.pids} {
		if dir != "" && !removed(dir) {
			g.parents.mu.Lock()
			g.parents.busy = append(g.parents.busy, dir)
			g.parents.mu.Unlock()
		}
	}
}

// counter reads a value by name from a file of "name value" lines. It returns 0 if there is an error.
func counter(dir, file, name string) int64 {
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}

// number reads a file that contains one number. It returns 0 if there is an error.
func number(dir, file string) int64 {
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(content)), 10, 64)
	return n
}

func write(dir, file, content string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(content), 0)
}

func optional(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
