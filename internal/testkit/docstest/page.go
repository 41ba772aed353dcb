// Package docstest runs the commands of documentation, so that every one of
// them does what its page says.
//
// A page is Markdown. Its fenced blocks say what they are behind their marks:
//
//	sh               commands, run in order, in one shell for the whole page
//	sh exit=1        the same, and the last of them ends with that status
//	sh norun=REASON  commands that need what a test has not; they are checked, not run
//	text output      what the block of commands before it prints; "..." stands for anything
//	yaml file=PATH   written into the file that the text names, before what follows is run
//
// Any other block is an illustration, in which no command may stand.
package docstest

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Page is a page of documentation.
type Page struct {
	Name   string // of its file
	Blocks []Block
	Prose  string // what stands outside of blocks
	Spans  []Span // code in it
}

// Block is a fenced block.
type Block struct {
	Line     int // of its first line, in the file
	Language string
	Text     string
	// NoRun is why its commands are not run; empty: they are.
	NoRun string
	// Exit is the status that the last of its commands ends with.
	Exit int
	// File is what its text is written into; empty: nothing.
	File string
	// Output is what its commands print, nil where the page does not say.
	Output *string

	output bool // it is what the block before it prints
}

// Run says whether the block is commands that a test runs.
func (b Block) Run() bool { return b.Language == "sh" && b.NoRun == "" }

// Span is code in a line of text.
type Span struct {
	Line int
	Text string
}

var (
	fence = regexp.MustCompile("^( *)```(.*)$")
	span  = regexp.MustCompile("`([^`]+)`")
)

// Read reads a page.
func Read(file string) (Page, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Page{}, err
	}
	return parse(file, string(text))
}

func parse(name, text string) (Page, error) {
	page := Page{Name: name}
	var open *Block
	var indent string
	for i, line := range strings.Split(text, "\n") {
		mark := fence.FindStringSubmatch(line)
		switch {
		case open != nil && mark != nil && mark[2] == "":
			if err := page.add(*open); err != nil {
				return page, fmt.Errorf("%s:%d: %w", name, open.Line, err)
			}
			open = nil
		case open != nil:
			open.Text += strings.TrimPrefix(line, indent) + "\n"
		case mark != nil:
			block, err := newBlock(mark[2])
			if err != nil {
				return page, fmt.Errorf("%s:%d: %w", name, i+1, err)
			}
			block.Line, indent, open = i+2, mark[1], &block
		default:
			page.Prose += line + "\n"
			for _, code := range span.FindAllStringSubmatch(line, -1) {
				page.Spans = append(page.Spans, Span{i + 1, code[1]})
			}
		}
	}
	if open != nil {
		return page, fmt.Errorf("%s:%d: a block does not end", name, open.Line)
	}
	return page, nil
}

// newBlock reads what stands behind the marks of a block.
func newBlock(info string) (Block, error) {
	words := strings.Fields(info)
	if len(words) == 0 {
		return Block{}, fmt.Errorf("a block does not say what it is; write ```sh for commands, ```text for what they print")
	}
	block := Block{Language: words[0]}
	for _, word := range words[1:] {
		var err error
		option, value, _ := strings.Cut(word, "=")
		switch {
		case option == "output":
			block.output = true
		case option == "file":
			block.File = value
		case option == "norun" && block.Language == "sh":
			block.NoRun = value
		case option == "exit" && block.Language == "sh":
			block.Exit, err = strconv.Atoi(value)
		case strings.Contains(word, "="):
			err = fmt.Errorf("%q is not known here", word)
		}
		if err != nil {
			return block, err
		}
	}
	return block, nil
}

// add keeps a block; one of output belongs to the commands before it.
func (p *Page) add(block Block) error {
	if !block.output {
		p.Blocks = append(p.Blocks, block)
		return nil
	}
	last := len(p.Blocks) - 1
	if last < 0 || !p.Blocks[last].Run() {
		return fmt.Errorf("output of no command; put it behind a block that is run")
	}
	p.Blocks[last].Output = &block.Text
	return nil
}
