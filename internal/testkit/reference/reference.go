// Package reference writes the reference of a command line in Markdown, from the definitions that also parse the
// command line.
package reference

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Variable is an environment variable that a program reads in addition to those of its flags.
type Variable struct{ Name, Help string }

// Markdown returns the reference of a program. Flags that several commands share appear once.
func Markdown(app *kong.Application, besides []Variable) string {
	d := document{shared: sharedGroups(app)}
	d.paragraph("# " + app.Name)
	d.paragraph("`make docs` writes this page from the definitions that also parse the command line.")
	d.prose(app.Help)
	commands := app.Leaves(true)
	if len(commands) > 0 {
		d.commands(commands)
		d.heading("Flags of every command")
	} else {
		d.heading("Flags")
	}
	d.flags(visible(app.Flags))
	for _, command := range commands {
		d.command(command)
	}
	if len(d.shared) > 0 {
		d.heading("Flags of several commands")
	}
	for _, group := range d.shared {
		d.paragraph("### " + group.title)
		d.paragraph("Of " + strings.Join(group.commands, ", ") + ".")
		d.flags(group.flags)
	}
	d.heading("Other variables")
	d.rows([]string{"variable", "what it does"})
	for _, variable := range besides {
		d.rows([]string{code(variable.Name), escape(variable.Help)})
	}
	return strings.TrimRight(d.text.String(), "\n") + "\n"
}

// document is a page being written.
type document struct {
	text   strings.Builder
	shared []group
	table  bool // whether the last line belongs to a table
}

func (d *document) paragraph(text string) {
	d.endTable()
	d.text.WriteString(text + "\n\n")
}

func (d *document) endTable() {
	if d.table {
		d.text.WriteByte('\n')
	}
	d.table = false
}

func (d *document) heading(title string) { d.paragraph("## " + title) }

// rows writes a line of a table; the first line is the header.
func (d *document) rows(cells []string) {
	d.text.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	if !d.table {
		d.text.WriteString(strings.Repeat("|---", len(cells)) + "|\n")
	}
	d.table = true
}

// commands writes the table of commands.
func (d *document) commands(commands []*kong.Node) {
	d.rows([]string{"command", "what it does"})
	for _, command := range commands {
		name := command.Path()
		d.rows([]string{fmt.Sprintf("[`%s`](#%s)", name, anchor(command.FullPath())), escape(command.Help)})
	}
}

// prose writes a long help text: paragraphs, with examples in code blocks.
func (d *document) prose(text string) {
	for _, part := range strings.Split(strings.TrimSpace(text), "\n\n") {
		lead, examples, found := strings.Cut(part, "Examples:\n")
		if lead = strings.TrimSpace(lead); lead != "" {
			d.paragraph(escape(lead))
		}
		if found {
			d.paragraph("```sh norun=example\n" + examplesOf(examples) + "\n```")
		}
	}
}

// examplesOf returns commands preceded by their descriptions as comments.
func examplesOf(text string) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		said, about := strings.CutPrefix(line, "      ")
		if !about {
			lines = append(lines, strings.TrimSpace(line))
			continue
		}
		lines = slices.Insert(lines, len(lines)-1, "# "+said)
	}
	return strings.Join(lines, "\n")
}

// command writes the section of one command.
func (d *document) command(command *kong.Node) {
	d.heading(command.FullPath())
	d.paragraph(escape(command.Help))
	d.prose(command.Detail)
	if len(command.Positional) > 0 {
		d.rows([]string{"argument", "variable", "what it does"})
		for _, argument := range command.Positional {
			d.rows([]string{code(argument.Summary()), codes(argument.Tag.Envs), escape(argument.Help)})
		}
		d.endTable()
	}
	var own []*kong.Flag
	var links []string
	for _, flags := range grouped(command.Flags) {
		shared := slices.IndexFunc(d.shared, func(g group) bool { return g.same(flags) })
		if shared < 0 {
			own = append(own, flags.flags...)
			continue
		}
		title := d.shared[shared].title
		links = append(links, fmt.Sprintf("[%s](#%s)", title, anchor(title)))
	}
	if len(own) > 0 {
		d.flags(own)
	}
	if len(links) > 0 {
		d.paragraph("Flags in common with others: " + strings.Join(links, ", ") + ".")
	}
}

// flags writes a table of flags.
func (d *document) flags(flags []*kong.Flag) {
	d.rows([]string{"flag", "variable", "default", "what it does"})
	for _, flag := range flags {
		name := code(flag.Summary())
		if flag.Short != 0 {
			name += " " + code("-"+string(flag.Short))
		}
		help, absent := describe(flag)
		d.rows([]string{name, codes(flag.Envs), absent, escape(help)})
	}
	d.endTable()
}

// absentText matches the part of a help text that describes the default.
var absentText = regexp.MustCompile(` Default: ([^.]+(?:\.[a-z][^.]*)*)\.`)

// describe returns the help text of a flag and its default.
func describe(flag *kong.Flag) (help, absent string) {
	help = flag.Help
	if said := absentText.FindStringSubmatchIndex(help); said != nil {
		return help[:said[0]] + help[said[1]:], escape(help[said[2]:said[3]])
	}
	switch {
	case flag.Required && len(flag.Xor) > 0:
		return help, "one of these is required"
	case flag.Required:
		return help, "required"
	}
	return help, code(flag.Default)
}

// group is the flags of one group that several commands share.
type group struct {
	title    string
	flags    []*kong.Flag
	commands []string
}

// same reports whether other has the same flags with the same descriptions.
func (g group) same(other group) bool {
	return g.title == other.title && slices.EqualFunc(g.flags, other.flags, func(a, b *kong.Flag) bool {
		return a.Name == b.Name && a.Help == b.Help && a.Default == b.Default
	})
}

// grouped returns flags by their group, in order; flags without a group form one too.
func grouped(flags []*kong.Flag) (groups []group) {
	for _, flag := range visible(flags) {
		title := ""
		if flag.Group != nil {
			title = flag.Group.Title
		}
		at := slices.IndexFunc(groups, func(g group) bool { return g.title == title })
		if at < 0 {
			groups = append(groups, group{title: title})
			at = len(groups) - 1
		}
		groups[at].flags = append(groups[at].flags, flag)
	}
	return groups
}

// sharedGroups returns the groups that more than one command has.
func sharedGroups(app *kong.Application) []group {
	var all []group
	for _, command := range app.Leaves(true) {
		for _, g := range grouped(command.Flags) {
			if g.title == "" {
				continue
			}
			at := slices.IndexFunc(all, g.same)
			if at < 0 {
				all = append(all, g)
				at = len(all) - 1
			}
			all[at].commands = append(all[at].commands, fmt.Sprintf("[`%s`](#%s)", command.Path(), anchor(command.FullPath())))
		}
	}
	all = slices.DeleteFunc(all, func(g group) bool { return len(g.commands) < 2 })
	slices.SortFunc(all, func(a, b group) int { return cmp.Compare(a.title, b.title) })
	return all
}

func visible(flags []*kong.Flag) []*kong.Flag {
	return slices.DeleteFunc(slices.Clone(flags), func(f *kong.Flag) bool { return f.Hidden || f.Name == "help" })
}

// anchor returns the anchor that Markdown renderers derive from a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(strings.ToLower(heading), " ", "-")
}

// escape escapes Markdown in a text.
func escape(text string) string {
	return strings.NewReplacer("|", `\|`, "*", `\*`, "<", `\<`, "_", `\_`, "`", "\\`").Replace(text)
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}

func codes(names []string) string {
	var all []string
	for _, name := range names {
		all = append(all, code(name))
	}
	return strings.Join(all, " ")
}
