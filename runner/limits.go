package runner

import (
	"fmt"
	"time"
)

// Limits are the limits of one execution. A zero field takes its default.
type Limits struct {
	// Wall is the time from the step's first line to its end; default 30 s, at most MaxWall.
	Wall time.Duration
	// CPU is the CPU time of the whole process tree; default twice Wall.
	CPU time.Duration
	// Memory is the resident memory of the whole process tree in bytes; default 1 GiB.
	Memory int64
	// Processes is the number of processes and threads at one time; default 64.
	Processes int64
	// OpenFiles is the number of open files of one process; default 1024.
	OpenFiles int64
	// FileSize is the size of one written file in bytes; default 512 MiB.
	FileSize int64
	// TmpSize is the size of /tmp in bytes; default 512 MiB.
	TmpSize int64
	// Result is the size of the result in bytes as it leaves Python; default 6 MiB.
	Result int64
}

// MaxWall is the ceiling of Limits.Wall.
const MaxWall = 55 * time.Second

const (
	mib = 1 << 20

	// maxRequests, maxLogMessage and maxLogTotal are the caps of the contract, in entries and bytes; maxRequestBody and
	// maxResponseBody those of one recorded HTTP call.
	maxRequests     = 100
	maxLogMessage   = 8 << 10
	maxLogTotal     = 100 << 10
	maxRequestBody  = 8 << 10
	maxResponseBody = 1 << 10
	// maxDetail is how many bytes of the end of a traceback are kept.
	maxDetail = 8 << 10
)

// WithDefaults returns l with every zero field set.
func (l Limits) WithDefaults() Limits {
	setDefault(&l.Wall, 30*time.Second)
	setDefault(&l.CPU, 2*l.Wall)
	setDefault(&l.Memory, 1024*mib)
	setDefault(&l.Processes, 64)
	setDefault(&l.OpenFiles, 1024)
	setDefault(&l.FileSize, 512*mib)
	setDefault(&l.TmpSize, 512*mib)
	setDefault(&l.Result, 6*mib)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// ShareProcess reports whether a process that was started with l also fits other: they differ at most in Wall, CPU and
// Result, which are not fixed at the start of a process.
func (l Limits) ShareProcess(other Limits) bool {
	l.Wall, l.CPU, l.Result = other.Wall, other.CPU, other.Result
	return l == other
}

// Validate reports invalid limits, keyed by their field names in a request.
func (l Limits) Validate() error {
	var errs FieldErrors
	if l.Wall > MaxWall {
		errs.Add(fmt.Sprintf("must be at most %s, not %s", MaxWall, l.Wall), "timeout")
	}
	for _, limit := range []struct {
		name  string
		value int64
	}{
		{"timeout", int64(l.Wall)}, {"cpu", int64(l.CPU)}, {"memory", l.Memory}, {"processes", l.Processes},
		{"open_files", l.OpenFiles}, {"file_size", l.FileSize}, {"tmp_size", l.TmpSize}, {"result", l.Result},
	} {
		if limit.value < 0 {
			errs.Add("must be positive", limit.name)
		}
	}
	return errs.Err()
}

// formatBytes writes a size the way a person would: "1 GiB", "512 MiB", "6291457 bytes".
func formatBytes(n int64) string {
	units := []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {mib, "MiB"}, {1 << 10, "KiB"}}
	for _, unit := range units {
		if n >= unit.size && n%unit.size == 0 {
			return fmt.Sprintf("%d %s", n/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
