// Package terminal writes the output for people in a terminal. Its rules:
//
//   - Only the page goes to standard output, nothing else from the sidecar.
//   - Everything that a step wrote passes through shown.Text: it can never move the cursor, change colours or retitle
//     the terminal.
//   - Styles are always applied; the writer removes them when the output is not a terminal, or NO_COLOR is set.
package terminal

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/colorprofile"
	"github.com/dustin/go-humanize"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/internal/shown"
	"github.com/kizen/kizen-sidecar/runner"
)

// Execution is an execution and its result.
type Execution struct {
	execution.Ended
	Name    string
	Runtime runner.Runtime
	// APIRoot is removed from the URLs of the step's calls.
	APIRoot string
}

// Page prints one execution for a person.
type Page struct {
	Out io.Writer
	// Detail shows each HTTP call in full, and the time of each phase.
	Detail bool
}

// Print writes the whole page. It returns the first error of the output.
func (p Page) Print(done Execution) error {
	var text strings.Builder
	p.header(&text, done)
	p.values(&text, done.Result)
	p.logs(&text, done.Result)
	p.calls(&text, done)
	p.connections(&text, done.Result)
	p.failure(&text, done.Result)
	if p.Detail {
		p.phases(&text, done)
	}
	_, err := io.WriteString(colorprofile.NewWriter(p.Out, os.Environ()), text.String())
	return err
}

func (p Page) header(w io.Writer, done Execution) {
	name := shown.Text(done.Name)
	duration := formatDuration(done.Result.Duration)
	if done.Result.Succeeded() {
		fmt.Fprintf(w, "%s %s in %s", goodStyle.Render("✓ "+name), goodStyle.Render("succeeded"), duration)
	} else {
		failed := fmt.Sprintf("failed (%s)", done.Result.Outcome)
		fmt.Fprintf(w, "%s %s after %s", badStyle.Render("✗ "+name), badStyle.Render(failed), duration)
	}
	fmt.Fprintln(w, faintStyle.Render(fmt.Sprintf("  %s · execution %s", done.Runtime, done.Result.RequestID)))
}

func (p Page) values(w io.Writer, result runner.Result) {
	if !result.Succeeded() {
		return
	}
	section(w, "Values", "")
	if len(result.Values) == 0 {
		fmt.Fprintln(w, faintStyle.Render("  none assigned"))
	}
	rows := make([][]string, len(result.Values))
	for i, output := range result.Values {
		value := output.Value()
		rows[i] = []string{output.Name, typeOf(value), valueText(value)}
	}
	columns(w, rows)
}

func (p Page) logs(w io.Writer, result runner.Result) {
	dropped := ""
	if result.Dropped.Bytes > 0 || result.Dropped.Messages > 0 {
		dropped = fmt.Sprintf("%d messages and %s dropped", result.Dropped.Messages,
			humanize.IBytes(uint64(result.Dropped.Bytes)))
	}
	section(w, "Logs", dropped)
	if len(result.Logs) == 0 {
		fmt.Fprintln(w, faintStyle.Render("  none; outputs.log(...) writes here, print does not"))
	}
	for _, line := range result.Logs {
		indent(w, "  ", shown.Text(line))
	}
}

func (p Page) calls(w io.Writer, done Execution) {
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
	section(w, "HTTP", note)
	root := done.APIRoot
	rows := [][]string{{"METHOD", "PATH", "STATUS", "MS"}}
	for _, call := range record.Requests {
		rows = append(rows, []string{call.Method, callPath(call, root), callStatus(call), callDuration(call)})
	}
	columns(w, rows)
	if p.Detail {
		for _, call := range record.Requests {
			callDetail(w, call, root)
		}
	}
}

func (p Page) connections(w io.Writer, result runner.Result) {
	record := result.Connections
	if record == nil || record.Count == 0 {
		return
	}
	note := fmt.Sprintf("%d connections", record.Count)
	if record.Count == 1 {
		note = "1 connection"
	}
	if record.Refused > 0 {
		note += fmt.Sprintf(", %d refused", record.Refused)
	}
	if record.NotLogged > 0 {
		note += fmt.Sprintf(", %d not shown", record.NotLogged)
	}
	section(w, "Connections", note)
	rows := [][]string{{"TO", "OVER", "RESULT", "POLICY", "MS"}}
	for _, connection := range record.Connections {
		rows = append(rows, []string{connectionTarget(connection), connection.Transport, connectionResult(connection),
			connection.Policy,
			fmt.Sprintf("%.1f", connection.Duration)})
	}
	columns(w, rows)
}

// connectionTarget returns the name and the address of a connection, as far as they are known.
func connectionTarget(c runner.Connection) string {
	switch {
	case c.Address == "":
		return c.Host
	case c.Host == "":
		return net.JoinHostPort(c.Address, strconv.Itoa(int(c.Port)))
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + " at " + c.Address
}

// connectionResult returns the result of a connection. If the step itself waits for the connection, the result is
// unknown.
func connectionResult(c runner.Connection) string {
	switch {
	case !c.Allowed:
		return "refused"
	case c.Error != "" && c.Error != "EINPROGRESS":
		return c.Error
	}
	return "permitted"
}

func callDetail(w io.Writer, call runner.HTTPEntry, root string) {
	fmt.Fprintf(w, "\n  %s %s %s\n", titleStyle.Render(call.Method), shown.Text(callPath(call, root)), callStatus(call))
	message(w, "> ", call.Headers, call.Body)
	message(w, "< ", call.ResponseHeaders, call.ResponseBody)
}

func message(w io.Writer, mark string, headers map[string]string, body *string) {
	for _, name := range sortedKeys(headers) {
		indent(w, "    "+faintStyle.Render(mark), shown.Text(name+": "+headers[name]))
	}
	if body != nil && *body != "" {
		indent(w, "    "+faintStyle.Render(mark), shown.Text(*body))
	}
}

func (p Page) failure(w io.Writer, result runner.Result) {
	if result.Error == nil {
		return
	}
	section(w, "Error", "")
	indent(w, "  ", badStyle.Render(shown.Text(result.Error.Message)))
	if result.Error.Detail != "" {
		fmt.Fprintln(w)
		indent(w, "  ", shown.Text(strings.TrimRight(result.Error.Detail, "\n")))
	}
	for _, stream := range []struct{ title, text string }{
		{"Standard output", result.Stdout}, {"Standard error", result.Stderr},
	} {
		if stream.text != "" {
			section(w, stream.title, "")
			indent(w, "  ", shown.Text(strings.TrimRight(stream.text, "\n")))
		}
	}
}

func (p Page) phases(w io.Writer, done Execution) {
	section(w, "Time", "")
	rows := [][]string{}
	for phase, spent := range done.Spent(0) {
		if phase != phases.Queue { // a command does not wait for a slot
			rows = append(rows, []string{string(phase), formatDuration(spent)})
		}
	}
	columns(w, rows)
	if missing := done.Result.Layers.Missing; len(missing) > 0 {
		fmt.Fprintln(w, "\n  "+shown.Text("sandbox without "+strings.Join(missing, ", ")))
	}
}

func section(w io.Writer, title, note string) {
	fmt.Fprint(w, "\n", titleStyle.Render(title))
	if note != "" {
		fmt.Fprint(w, "  ", faintStyle.Render(note))
	}
	fmt.Fprintln(w)
}

// columns writes rows of a step's output below the title of a section.
func columns(w io.Writer, rows [][]string) {
	for _, row := range rows {
		for i, cell := range row {
			row[i] = strings.ReplaceAll(shown.Text(cell), "\n", " ")
		}
	}
	Table(w, "  ", rows)
}

func indent(w io.Writer, prefix, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(w, prefix+strings.TrimSuffix(line, "\n"))
	}
	if text == "" {
		fmt.Fprintln(w, strings.TrimRight(prefix, " "))
	}
}

func typeOf(value runner.Value) string { return string(value.Type) }

// valueText returns a value in its wire form, strings without quotes.
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
