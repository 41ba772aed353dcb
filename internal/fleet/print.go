package fleet

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/terminal"
)

// Print writes the overview as text for a terminal.
func (o Overview) Print(to io.Writer) error {
	for i, counts := range append([]Counts{o.Counts}, o.Queues...) {
		drained := ""
		if counts.Paused {
			drained = "; drained, so workers take nothing"
		}
		if len(o.Queues) > 0 && i == 0 {
			counts.Queue = "all queues"
		}
		_, err := fmt.Fprintf(to, "%s: %d waiting, %d put off, %d active, %d dead, %d trimmed%s\n", counts.Queue,
			counts.Waiting, counts.PutOff, counts.Active, counts.Dead, counts.Trimmed, drained)
		if err != nil {
			return err
		}
	}
	if len(o.Tasks) == 0 {
		return nil
	}
	rows := [][]string{{"ID", "STATE", "WHEN", "REASON"}}
	for _, task := range o.Tasks {
		when := cmp.Or(task.Next, task.Since, &time.Time{})
		rows = append(rows, []string{task.ID, string(task.State), terminal.Time(*when), summary(task.Reason)})
	}
	return terminal.Table(to, "", rows)
}

// longestReason is the maximum length of a reason in a table, in bytes.
const longestReason = 120

// summary returns the first line of a text, cut to longestReason.
func summary(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	if len(line) > longestReason {
		line = strings.ToValidUTF8(line[:longestReason], "") + " ..."
	}
	return line
}

// Print writes the execution as a table for a terminal.
func (e Execution) Print(to io.Writer) error {
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return terminal.Time(*t)
	}
	number := func(n int64) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprint(n)
	}
	var rows [][]string
	for _, row := range [][]string{
		{"id", e.ID}, {"task", e.State}, {"record", string(e.Record)}, {"outcome", string(e.Outcome)},
		{"finished", at(e.Finished)},
		{"reason", summary(e.Reason)}, {"given up", at(e.Since)}, {"next", at(e.Next)}, {"worker", e.Worker},
		{"attempts", number(e.Attempts)}, {"retried", number(e.Run)}, {"callback", e.Callback},
		{"callback error", summary(e.Failure)},
		{"late outcome", string(e.Late)},
	} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	return terminal.Table(to, "", rows)
}
