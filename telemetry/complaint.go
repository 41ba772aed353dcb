package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/sdk/resource"
)

// complaintInterval is how often exporting may be mentioned in the log.
const complaintInterval = time.Minute

// complaintLength is how much of an error is worth a line of the log; a
// collector may answer with a page.
const complaintLength = 300

// complaints is where everything ends that goes wrong while exporting: in the
// log, once in an interval.
type complaints struct {
	log  *slog.Logger
	mask *Mask // of the credentials of exporters
	now  func() time.Time

	// quiet holds back the libraries' own words on settings that have been
	// named already, which would also use up the interval's one line.
	quiet atomic.Bool

	mu         sync.Mutex
	next       time.Time
	suppressed int
}

func newComplaints(log *slog.Logger, secrets []string) *complaints {
	return &complaints{log: log, mask: NewMask(secrets...), now: time.Now}
}

// say logs what failed and why, or counts it where the last line is too recent.
func (c *complaints) say(what string, err error) {
	c.mu.Lock()
	now := c.now()
	if now.Before(c.next) {
		c.suppressed++
		c.mu.Unlock()
		return
	}
	suppressed := c.suppressed
	c.next, c.suppressed = now.Add(complaintInterval), 0
	c.mu.Unlock()

	attrs := []slog.Attr{}
	if err != nil {
		attrs = append(attrs, slog.String("error", c.clean(err.Error())))
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	c.log.LogAttrs(context.Background(), slog.LevelWarn, what, attrs...)
}

func (c *complaints) clean(text string) string {
	return brief(c.mask.Text(truncate(text, 8*complaintLength)))
}

// brief is a text that may be long, redacted and cut for a line.
func brief(text string) string {
	return truncate(Redact(truncate(text, 8*complaintLength)), complaintLength)
}

// truncate cuts text to at most limit bytes, at the start of a character.
func truncate(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}

// Handle implements otel.ErrorHandler.
func (c *complaints) Handle(err error) {
	if errors.Is(err, resource.ErrPartialResource) || c.quiet.Load() {
		return // describe has said so, without the value
	}
	c.say("opentelemetry reports an error", err)
}

// sdkLog takes the libraries' own log. What they write of a setting that they
// cannot read includes its value, such as a header with a credential, so only
// the message is kept.
type sdkLog struct{ c *complaints }

// Enabled lets errors and warnings through; the library numbers its levels
// downwards from zero.
func (sdkLog) Enabled(_ context.Context, level slog.Level) bool { return level >= -1 }

func (l sdkLog) Handle(_ context.Context, record slog.Record) error {
	if l.c.quiet.Load() {
		return nil
	}
	l.c.say("opentelemetry has a problem with its settings; check the OTEL_ variables: "+record.Message, nil)
	return nil
}

func (l sdkLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l sdkLog) WithGroup(string) slog.Handler      { return l }
