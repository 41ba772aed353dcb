package main

// What a person sees. Rules of this file:
//
//   - The page goes to standard output; nothing of the sidecar's own does.
//   - Text becomes shown through plain or a style, which replace control
//     characters, and a sheet takes nothing else: no method, error class, name
//     or log line can move the cursor, change colours or retitle the terminal.
//   - Styles are applied everywhere and taken out by the writer when the output
//     is no terminal, or NO_COLOR is set.

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/dustin/go-humanize"

	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/runner"
)

var (
	goodStyle  = style(lipgloss.NewStyle().Foreground(lipgloss.Green).Bold(true))
	warnStyle  = style(lipgloss.NewStyle().Foreground(lipgloss.Yellow).Bold(true))
	badStyle   = style(lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true))
	titleStyle = style(lipgloss.NewStyle().Bold(true))
	faintStyle = style(lipgloss.NewStyle().Faint(true))
)

// shown is text without control characters but for line breaks, tabs and the sequences of our own styles.
type shown string

// plain returns text that a terminal does not obey.
func plain(text string) shown { return shown(terminal.Text(text)) }

// style returns a function that applies a style to text, and to nothing that a terminal would obey.
func style(with lipgloss.Style) func(text string) shown {
	return func(text string) shown { return shown(with.Render(string(plain(text)))) }
}

// sheet is what a page is written on.
type sheet struct{ text strings.Builder }

// line writes a line of several parts.
func (s *sheet) line(parts ...shown) {
	for _, part := range parts {
		s.text.WriteString(string(part))
	}
	s.text.WriteByte('\n')
}

// write writes the sheet, with colours where out is a terminal.
func (s *sheet) write(out io.Writer) error {
	// The sheet is shown already, and has control sequences of our own.
	_, err := io.WriteString(colorprofile.NewWriter(terminal.Unwrap(out), os.Environ()), s.text.String())
	return err
}

// section begins a part of the page.
func (s *sheet) section(title, note string) {
	s.line()
	if note == "" {
		s.line(titleStyle(title))
		return
	}
	s.line(titleStyle(title), "  ", faintStyle(note))
}

// columns writes rows two spaces apart, each column as wide as its widest cell.
func (s *sheet) columns(rows [][]shown) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			row[i] = shown(strings.ReplaceAll(string(cell), "\n", " "))
			widths[i] = max(widths[i], lipgloss.Width(string(row[i])))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString("  " + string(cell) + strings.Repeat(" ", widths[i]-lipgloss.Width(string(cell))))
		}
		s.line(shown(strings.TrimRight(line.String(), " ")))
	}
}

// indent writes each line of text behind a prefix.
func (s *sheet) indent(prefix, text shown) {
	for line := range strings.Lines(string(text)) {
		s.line(prefix, shown(strings.TrimSuffix(line, "\n")))
	}
	if text == "" {
		s.line(shown(strings.TrimRight(string(prefix), " ")))
	}
}

// page prints one execution for a person.
type page struct {
	out io.Writer
	// detail opens every HTTP call, and shows where the time went.
	detail bool
}

// print writes the whole page. It returns the first error of the output.
func (p page) print(done executed) error {
	s := &sheet{}
	p.header(s, done)
	p.values(s, done.Result)
	p.logs(s, done.Result)
	p.calls(s, done)
	p.failure(s, done.Result)
	if p.detail {
		p.phases(s, done)
	}
	return s.write(p.out)
}

func (p page) header(s *sheet, done executed) {
	duration := plain(formatDuration(done.Result.Duration))
	about := faintStyle(fmt.Sprintf("  %s · execution %s", done.runtime, done.Result.RequestID))
	if done.Result.Succeeded() {
		s.line(goodStyle("✓ "+done.name), " ", goodStyle("succeeded"), " in ", duration, about)
		return
	}
	failed := fmt.Sprintf("failed (%s)", done.Result.Outcome)
	s.line(badStyle("✗ "+done.name), " ", badStyle(failed), " after ", duration, about)
}

func (p page) values(s *sheet, result runner.Result) {
	if !result.Succeeded() {
		return
	}
	s.section("Values", "")
	if len(result.Values) == 0 {
		s.line(faintStyle("  none assigned"))
	}
	rows := make([][]shown, len(result.Values))
	for i, value := range result.Values {
		rows[i] = []shown{plain(value.Name), plain(typeOf(value.Value)), plain(valueText(value.Value))}
	}
	s.columns(rows)
}

func (p page) logs(s *sheet, result runner.Result) {
	dropped := ""
	if result.Dropped.Bytes > 0 || result.Dropped.Messages > 0 {
		dropped = fmt.Sprintf("%d messages and %s dropped", result.Dropped.Messages, humanize.IBytes(uint64(result.Dropped.Bytes)))
	}
	s.section("Logs", dropped)
	if len(result.Logs) == 0 {
		s.line(faintStyle("  none; outputs.log(...) writes here, print does not"))
	}
	for _, line := range result.Logs {
		s.indent("  ", plain(line))
	}
}

func (p page) calls(s *sheet, done executed) {
	record := done.Result.HTTP
	if record == nil || record.Count == 0 {
		return
	}
	note := fmt.Sprintf("%d calls", record.Count)
	if record.Count == 1 {
		note = "1 call"
	}
	if record.NotLogged > 0 {
		note += fmt.Sprintf(", %d not shown", record.NotLogged)
	}
	s.section("HTTP", note)
	root := done.apiRoot
	rows := [][]shown{{"METHOD", "PATH", "STATUS", "MS"}}
	for _, call := range record.Requests {
		rows = append(rows, []shown{plain(call.Method), plain(callPath(call, root)), plain(callStatus(call)), plain(callDuration(call))})
	}
	s.columns(rows)
	if p.detail {
		for _, call := range record.Requests {
			callDetail(s, call, root)
		}
	}
}

func callDetail(s *sheet, call runner.HTTPEntry, root string) {
	s.line()
	s.line("  ", titleStyle(call.Method), " ", plain(callPath(call, root)), " ", plain(callStatus(call)))
	message(s, "> ", call.Headers, call.Body)
	message(s, "< ", call.ResponseHeaders, call.ResponseBody)
}

func message(s *sheet, mark string, headers map[string]string, body *string) {
	prefix := "    " + faintStyle(mark)
	for _, name := range sortedKeys(headers) {
		s.indent(prefix, plain(name+": "+headers[name]))
	}
	if body != nil && *body != "" {
		s.indent(prefix, plain(*body))
	}
}

func (p page) failure(s *sheet, result runner.Result) {
	if result.Error == nil {
		return
	}
	s.section("Error", "")
	s.indent("  ", badStyle(result.Error.Message))
	if result.Error.Detail != "" {
		s.line()
		s.indent("  ", plain(strings.TrimRight(result.Error.Detail, "\n")))
	}
}

func (p page) phases(s *sheet, done executed) {
	s.section("Time", "")
	phases := done.Result.Phases
	rows := [][]shown{}
	for _, phase := range []struct {
		name  shown
		spent time.Duration
	}{
		{"mint", done.Mint},
		{"spawn", phases.Spawn},
		{"import", phases.Import},
		{"step", phases.Step},
		{"teardown", phases.Teardown + done.Teardown},
	} {
		rows = append(rows, []shown{phase.name, plain(formatDuration(phase.spent))})
	}
	s.columns(rows)
	if missing := done.Result.Layers.Missing; len(missing) > 0 {
		s.line()
		s.line("  ", plain("sandbox without "+strings.Join(missing, ", ")))
	}
}

func typeOf(value runner.Value) string { return string(value.Type) }

// valueText is a value as the wire has it, strings without their quotes.
func valueText(value runner.Value) string {
	data, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	var wire struct {
		V json.RawMessage `json:"v"`
	}
	if err := json.Unmarshal(data, &wire); err != nil {
		return err.Error()
	}
	var text string
	if json.Unmarshal(wire.V, &text) == nil && text != "" {
		return text
	}
	return string(wire.V)
}

func callPath(call runner.HTTPEntry, root string) string {
	if path, ok := strings.CutPrefix(call.URL, root); ok && call.Session {
		return path
	}
	return call.URL
}

func callStatus(call runner.HTTPEntry) string {
	switch {
	case call.ResponseStatusCode != nil:
		return strings.TrimSpace(fmt.Sprintf("%d %s", *call.ResponseStatusCode, http.StatusText(*call.ResponseStatusCode)))
	case call.RequestErrorType != nil:
		return *call.RequestErrorType
	}
	return "no answer"
}

func callDuration(call runner.HTTPEntry) string {
	if call.Duration == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f", *call.Duration)
}

func formatDuration(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
