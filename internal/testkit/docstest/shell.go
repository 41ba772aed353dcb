package docstest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limit is how long one block may take, including the start of its servers.
const limit = time.Minute

// shell runs the blocks of one page in its own folder and its own network, where every port that a page names is free.
type shell struct {
	dir     string
	command *exec.Cmd
	script  io.Writer
	answers *bufio.Reader
	network string // the network of the shell and its children
	blocks  int
}

// ErrNoNetwork means that this process is not allowed to create a network namespace.
var ErrNoNetwork = errors.New("a private network needs root")

// Stage is the environment in which pages run.
type Stage struct {
	// Environment is the environment of the commands.
	Environment []string
	// Patience is how long the processes that a page has started may take to exit.
	Patience time.Duration
}

// Run runs the blocks of a page, in a folder of its own. It returns the differences from the page, and ends every
// process that the page has started.
func (stage Stage) Run(ctx context.Context, page Page, dir string) (err error) {
	if !slices.ContainsFunc(page.Blocks, Block.Run) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*limit)
	defer cancel()
	s, err := open(ctx, dir, stage.Environment)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(stage.Patience)) }()
	for _, block := range page.Blocks {
		var err error
		switch {
		case block.File != "":
			err = s.write(block.File, block.Text)
		case block.Run():
			err = s.run(block)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", page.Name, block.Line, err)
		}
	}
	return s.end()
}

// records is the folder where a shell keeps its blocks and their output.
const records = ".blocks"

func open(ctx context.Context, dir string, environment []string) (*shell, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNoNetwork
	}
	if err := os.MkdirAll(filepath.Join(dir, records), 0o755); err != nil {
		return nil, err
	}
	s := &shell{dir: dir, command: exec.CommandContext(ctx, "bash", "--norc", "-eE", "-o", "pipefail")}
	s.command.Dir, s.command.Env = dir, environment
	s.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.command.Cancel = func() error { return syscall.Kill(-s.command.Process.Pid, syscall.SIGKILL) }
	s.command.WaitDelay = time.Second
	stdin, err := s.command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.script, s.answers = stdin, bufio.NewReader(stdout)
	if err := startInOwnNetwork(s.command); err != nil {
		return nil, fmt.Errorf("start a shell in a private network: %w", err)
	}
	s.network, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.command.Process.Pid))
	return s, err
}

// startInOwnNetwork starts a command in a new network namespace with a loopback interface that is up.
func startInOwnNetwork(command *exec.Cmd) (err error) {
	runtime.LockOSThread() // a namespace belongs to a thread
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer ours.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	defer func() {
		if back := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, back) // the thread stays locked, because nothing else may run on it
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := raiseLoopback(); err != nil {
		return err
	}
	return command.Start()
}

func raiseLoopback() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	loopback.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, loopback)
}

// write puts a file into the shell's folder.
func (s *shell) write(name, text string) error {
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// run runs a block, waits until the servers that it started are ready, and compares its output with the page.
func (s *shell) run(block Block) error {
	commands, err := Commands(block.Text)
	if err != nil {
		return err
	}
	s.blocks++
	name := fmt.Sprintf("%s/%d", records, s.blocks)
	if err := s.write(name+".sh", block.Text); err != nil {
		return err
	}
	fmt.Fprintf(s.script, "%s. %s.sh >%s.out 2>%s.err </dev/null; echo $?; set -e\n",
		map[bool]string{true: "set +e; "}[block.Exit != 0], name, name, name)
	answer, err := s.answers.ReadString('\n')
	if err != nil {
		return fmt.Errorf("a command failed\n%s", s.printed(name))
	}
	if status := strings.TrimSpace(answer); status != fmt.Sprint(block.Exit) {
		return fmt.Errorf("the status is %s, not %d\n%s", status, block.Exit, s.printed(name))
	}
	if err := s.await(name, commands); err != nil {
		return err
	}
	if got := s.read(name + ".out"); block.Output != nil && !shows(*block.Output, got) {
		return fmt.Errorf("it does not print what the page shows, but\n%s", got)
	}
	return nil
}

func (s *shell) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, name)) // a missing file means no output
	return string(text)
}

func (s *shell) printed(name string) string { return s.read(name+".out") + s.read(name+".err") }

// ready matches the log line with which our servers report that they are ready.
var ready = regexp.MustCompile(`"msg":"(listening|serving|taking work)"`)

// redisListens matches a line of /proc/net/tcp: port 6379, listening.
var redisListens = regexp.MustCompile(`:18EB [0-9A-F:]+ 0A `)

// await waits until the servers that a block left running are ready.
func (s *shell) await(name string, commands []Command) error {
	ours, redis := 0, false
	for _, command := range commands {
		if command.Background && strings.HasPrefix(command.Program, "kizen-") {
			ours++
		}
		redis = redis || command.Background && command.Program == "redis-server"
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		listening, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", s.command.Process.Pid))
		if err != nil {
			return err
		}
		if len(ready.FindAllString(s.printed(name), -1)) >= ours && (!redis || redisListens.Match(listening)) {
			return nil
		}
		if children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.command.Process.Pid)); err == nil &&
			len(children) == 0 && (ours > 0 || redis) {
			return fmt.Errorf("a background command has ended\n%s", s.printed(name))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("its servers are not ready after %s\n%s", limit, s.printed(name))
		}
	}
}

// end stops the processes that a page left running, as Ctrl+C does, and returns those that did not exit cleanly.
func (s *shell) end() error {
	fmt.Fprintln(s.script,
		`set +e; pids=$(jobs -p); kill $pids 2>/dev/null; for pid in $pids; do wait $pid || echo "$pid $?"; done; exit 0`)
	answer, err := io.ReadAll(s.answers)
	if err != nil {
		return err
	}
	if len(answer) > 0 {
		return fmt.Errorf("left running, and did not stop with status 0: %s", answer)
	}
	return nil
}

// close ends all processes and returns those that were left.
func (s *shell) close(patience time.Duration) error {
	_ = syscall.Kill(-s.command.Process.Pid, syscall.SIGKILL) // the group may be empty
	_ = s.command.Wait()                                      // killed, or already ended
	var left []string
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		pids := s.inhabitants()
		if len(pids) == 0 {
			break
		}
		if time.Now().Before(deadline) {
			continue
		}
		for _, pid := range pids {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // the process may have ended
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
			_ = syscall.Kill(pid, syscall.SIGKILL) // likewise
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left running: %q", left)
	}
	return nil
}

// inhabitants returns the processes in the shell's network.
func (s *shell) inhabitants() (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is well formed
	for _, link := range links {
		if network, err := os.Readlink(link); err == nil && network == s.network {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2]) // digits
			pids = append(pids, pid)
		}
	}
	return pids
}
