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

// complaintInterval is the minimal time between two log lines about exporting.
const complaintInterval = time.Minute

// complaintLength is the maximal length of a logged error; a collector may answer with a whole page.
const complaintLength = 300

// complaints logs failures of exporting, at most once per interval.
type complaints struct {
	log  *slog.Logger
	mask *Mask // of the credentials of exporters
	now  func() time.Time

	// quiet suppresses the libraries' messages about settings that have already been reported. They would also use up
	// the one line of the interval.
	quiet atomic.Bool

	mu         sync.Mutex
	next       time.Time
	suppressed int
}

func newComplaints(log *slog.Logger, secrets []string) *complaints {
	return &complaints{log: log, mask: NewMask(secrets...), now: time.Now}
}

// report logs what failed and why, or counts it if the last line is too recent.
func (c *complaints) report(what string, err error) {
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

// brief redacts a text and truncates it for a log line.
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
		return // describe has reported it, without the value
	}
	c.report("opentelemetry reports an error", err)
}

// sdkLog receives the libraries' own log. Their records about an invalid setting include its value, such as a header
// with a credential, so sdkLog keeps only the message.
type sdkLog struct{ c *complaints }

// Enabled accepts errors and warnings; the library numbers its levels downwards from zero.
func (sdkLog) Enabled(_ context.Context, level slog.Level) bool { return level >= -1 }

func (l sdkLog) Handle(_ context.Context, record slog.Record) error {
	if l.c.quiet.Load() {
		return nil
	}
	l.c.report("opentelemetry rejects a setting; check the OTEL_ variables: "+record.Message, nil)
	return nil
}

func (l sdkLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l sdkLog) WithGroup(string) slog.Handler      { return l }
