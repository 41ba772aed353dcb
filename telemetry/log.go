package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"
)

// LogConfig configures the log.
type LogConfig struct {
	// Level is the lowest level to write: debug, info, warn or error. Empty means info.
	Level string
	// Format is text, json or auto. Auto and empty mean text on a terminal and JSON otherwise.
	Format string
}

// NewLogger returns a logger that writes redacted records to w. It returns an
// error that names the setting when Level or Format is unknown.
func NewLogger(w io.Writer, config LogConfig) (*slog.Logger, error) {
	var level slog.Level
	if config.Level != "" {
		if err := level.UnmarshalText([]byte(config.Level)); err != nil {
			return nil, fmt.Errorf("unknown log level %q; use debug, info, warn or error", config.Level)
		}
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler
	switch strings.ToLower(config.Format) {
	case "json":
		handler = slog.NewJSONHandler(w, options)
	case "text":
		handler = textHandler(w, options)
	case "", "auto":
		handler = slog.NewJSONHandler(w, options)
		if IsTerminal(w) {
			handler = textHandler(w, options)
		}
	default:
		return nil, fmt.Errorf("unknown log format %q; use text, json or auto", config.Format)
	}
	return slog.New(redactingHandler{next: handler}), nil
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// textHandler writes only the time of day, without the date.
func textHandler(w io.Writer, options *slog.HandlerOptions) slog.Handler {
	text := *options
	text.ReplaceAttr = func(groups []string, attr slog.Attr) slog.Attr {
		if attr.Key == slog.TimeKey && len(groups) == 0 {
			return slog.String(slog.TimeKey, attr.Value.Time().Format("15:04:05.000"))
		}
		return attr
	}
	return slog.NewTextHandler(w, &text)
}
