package main

import (
	"bytes"
	"reflect"
	"testing"
)

// TestRunParsesTheSameAloneAndAmongAllCommands: the short parser, which run uses to start faster, accepts the flags and
// prints the help of the full one.
func TestRunParsesTheSameAloneAndAmongAllCommands(t *testing.T) {
	of := func(line any) string {
		var out bytes.Buffer
		parser, err := newParser(line, streams{stdout: &out, stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		parser.Exit = func(int) {}
		if _, err := parser.Parse([]string{"run", "--help"}); err != nil {
			t.Logf("help ends with %v", err)
		}
		return out.String()
	}
	alone, among := of(new(runLine)), of(new(commandLine))
	if alone != among || alone == "" {
		t.Errorf("alone:\n%s\namong all commands:\n%s", alone, among)
	}
	one, _ := reflect.TypeFor[runLine]().FieldByName("Run")
	all, _ := reflect.TypeFor[commandLine]().FieldByName("Run")
	if one.Tag != all.Tag {
		t.Errorf("alone it is %q, among all commands %q", one.Tag, all.Tag)
	}
}
