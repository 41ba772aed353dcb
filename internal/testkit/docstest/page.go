// Package docstest runs the commands in the documentation, so that every command does what its page says.
//
// A page is Markdown. The info string of each fenced block gives its type:
//
//	sh               commands, run in order, in one shell for the whole page
//	sh exit=1        the same; the last command exits with that status
//	sh norun=REASON  commands that need something a test does not have; they are checked, not run
//	text output      the output of the preceding block of commands; "..." stands for anything
//	yaml file=PATH   written into the file that the text names, before the following blocks run
//
// Any other block is an illustration and contains no commands.
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
	Name   string // its file
	Blocks []Block
	Prose  string // the text outside the blocks
	Spans  []Span // code in that text
}

// Block is a fenced block.
type Block struct {
	Line     int // the first line, in the file
	Language string
	Text     string
	// NoRun is the reason why the commands are not run, or "".
	NoRun string
	// Exit is the expected exit status of the last command.
	Exit int
	// File is the file into which Text is written, or "".
	File string
	// Output is the expected output of the commands; nil if the page shows none.
	Output *string

	output bool // the block is the output of the block before it
}

// Run reports whether the block has commands that a test runs.
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

// newBlock parses the info string of a block.
func newBlock(info string) (Block, error) {
	words := strings.Fields(info)
	if len(words) == 0 {
		return Block{}, fmt.Errorf("a block has no type; write ```sh for commands, ```text for output")
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
			err = fmt.Errorf("unknown option %q", word)
		}
		if err != nil {
			return block, err
		}
	}
	return block, nil
}

// add appends a block; an output block is attached to the commands before it.
func (p *Page) add(block Block) error {
	if !block.output {
		p.Blocks = append(p.Blocks, block)
		return nil
	}
	last := len(p.Blocks) - 1
	if last < 0 || !p.Blocks[last].Run() {
		return fmt.Errorf("output without a command; put it after a block that is run")
	}
	p.Blocks[last].Output = &block.Text
	return nil
}
