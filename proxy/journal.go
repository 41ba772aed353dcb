package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/internal/shown"
)

// The limits of one execution's share of the audit file, which all executions share.
const (
	// maxRecorded is the maximal size of a recorded path or query, in bytes.
	maxRecorded = 2 << 10
	// auditBurst is how many bytes an execution may write to the audit file at once, auditRate how many it regains
	// per second.
	auditBurst, auditRate = 16 << 20, 1 << 20
	// maxRefusals is how many refused calls of an execution get their own line. Later ones are counted, and the
	// counts are written every foldInterval and at the end.
	maxRefusals  = 100
	foldInterval = 10 * time.Second
)

var errQuota = errors.New("this execution has used up its share of the audit file; make fewer calls per second")

// journal writes the audit lines of one execution within these limits.
type journal struct {
	cfg *Config

	mu       sync.Mutex
	left     float64 // bytes
	filled   time.Time
	refusals int
	folded   map[foldedKey]*foldedRefusals
	written  time.Time // when counts were last written
}

type foldedKey struct {
	outcome Outcome
	policy  string
}

type foldedRefusals struct {
	count uint64
	since time.Time
}

func newJournal(cfg *Config) *journal {
	now := time.Now()
	return &journal{cfg: cfg, left: auditBurst, filled: now, written: now, folded: map[foldedKey]*foldedRefusals{}}
}

// ready returns why no call may go to the API now.
func (j *journal) ready() error {
	if err := j.cfg.Audit.Ready(); err != nil {
		return errors.New("the call cannot be recorded, so it is not sent")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.refill()
	if j.left <= 0 {
		return errQuota
	}
	return nil
}

func (j *journal) refill() {
	now := time.Now()
	j.left = min(auditBurst, j.left+now.Sub(j.filled).Seconds()*auditRate)
	j.filled = now
}

// write records a call, or only counts it if too many calls were refused.
func (j *journal) write(call Call) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if refused(call.Outcome) {
		if j.refusals++; j.refusals > maxRefusals {
			return j.fold(call)
		}
	}
	return j.line(auditLine{j.cfg.ExecutionID, j.cfg.BusinessID, j.cfg.UserID, call})
}

// refused reports whether the proxy itself refused the call.
func refused(outcome Outcome) bool {
	status := statusOf[outcome]
	return status > 0 && status < 500 || outcome == NoKey || outcome == NoAudit || outcome == ShuttingDown
}

func (j *journal) fold(call Call) error {
	key := foldedKey{call.Outcome, call.Policy}
	if j.folded[key] == nil {
		j.folded[key] = &foldedRefusals{since: call.Start}
	}
	j.folded[key].count++
	if time.Since(j.written) < foldInterval {
		return nil
	}
	return j.writeFolded()
}

// end writes the remaining counts.
func (j *journal) end() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.writeFolded()
}

func (j *journal) writeFolded() error {
	j.written = time.Now()
	keys := slices.SortedFunc(maps.Keys(j.folded), func(a, b foldedKey) int {
		return strings.Compare(string(a.outcome)+a.policy, string(b.outcome)+b.policy)
	})
	for _, key := range keys {
		counted := j.folded[key]
		err := j.line(struct {
			Time     string  `json:"time"`
			ID       string  `json:"execution_id,omitempty"`
			Business string  `json:"business_id"`
			User     string  `json:"user_id"`
			Outcome  Outcome `json:"outcome"`
			Decision string  `json:"decision"`
			Policy   string  `json:"policy,omitempty"`
			Count    uint64  `json:"count"`
			Since    string  `json:"since"`
		}{
			j.written.UTC().Format(time.RFC3339Nano), j.cfg.ExecutionID, j.cfg.BusinessID, j.cfg.UserID, key.outcome, "deny",
			key.policy,
			counted.count, counted.since.UTC().Format(time.RFC3339Nano),
		})
		if err != nil {
			return err // counting continues, and they are written later
		}
		delete(j.folded, key)
	}
	return nil
}

func (j *journal) line(of any) error {
	line, err := json.Marshal(of)
	if err != nil {
		return err
	}
	j.refill()
	j.left -= float64(len(line) + 1)
	_, err = j.cfg.Audit.Write(append(shown.JSON(line), '\n')) // a terminal shows the file
	return err
}

// cutLong truncates a text from the step for the record.
func cutLong(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return fmt.Sprintf("%s... (%d bytes)", strings.ToValidUTF8(text[:limit], ""), len(text))
}
