package terminal

import (
	"fmt"
	"io"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
)

var (
	goodStyle  = lipgloss.NewStyle().Foreground(lipgloss.Green).Bold(true)
	warnStyle  = lipgloss.NewStyle().Foreground(lipgloss.Yellow).Bold(true)
	badStyle   = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
	titleStyle = lipgloss.NewStyle().Bold(true)
	faintStyle = lipgloss.NewStyle().Faint(true)
)

// Mark is a tick or a cross.
func Mark(good bool) string {
	if good {
		return goodStyle.Render("✓")
	}
	return badStyle.Render("✗")
}

// Warning is the mark of something that works but needs attention.
func Warning() string { return warnStyle.Render("!") }

// Table writes rows after a prefix, with columns two spaces apart and as wide as their widest cells. It returns the
// error of w.
func Table(w io.Writer, prefix string, rows [][]string) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], lipgloss.Width(cell))
		}
	}
	var table strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			line.WriteString(cell + strings.Repeat(" ", widths[i]-lipgloss.Width(cell)))
		}
		fmt.Fprintln(&table, strings.TrimRight(prefix+line.String(), " "))
	}
	_, err := io.WriteString(w, table.String())
	return err
}

// Time formats a time for tables: in UTC, in whole seconds, or "-" for the zero time.
func Time(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
