// Package flagvalue reads the numbers and durations of a command line, and checks their minimums.
package flagvalue

import (
	"fmt"
	"reflect"
	"regexp"
	"time"

	"github.com/alecthomas/kong"
)

var (
	longFlag = regexp.MustCompile(`^--[a-z][a-z0-9-]*$`)
	negative = regexp.MustCompile(`^-\.?[0-9]`)
)

// Join returns the arguments with every negative number joined to the flag before it: kong would take the "-1" of
// "--slots -1" for a flag.
func Join(arguments []string) []string {
	var joined []string
	for i, argument := range arguments {
		if argument == "--" {
			return append(joined, arguments[i:]...)
		}
		if last := len(joined) - 1; last >= 0 && negative.MatchString(argument) && longFlag.MatchString(joined[last]) {
			joined[last] += "=" + argument
			continue
		}
		joined = append(joined, argument)
	}
	return joined
}

// Durations is the option that makes the error of a wrong duration say how to write one.
func Durations() kong.Option {
	return kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(readDuration))
}

func readDuration(from *kong.DecodeContext, into reflect.Value) error {
	var text string
	if err := from.Scan.PopValueInto("duration", &text); err != nil {
		return err
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration; write it like 30s or 5m", text)
	}
	into.SetInt(int64(duration))
	return nil
}

// Check returns an error for the first flag whose value is below the minimum in its tag "least". Flags with this tag
// are integers or durations.
func Check(flags []*kong.Flag) error {
	for _, flag := range flags {
		least := flag.Tag.Get("least")
		if least == "" {
			continue
		}
		bound := reflect.New(flag.Target.Type()).Elem()
		parse := kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: least})
		if err := flag.Mapper.Decode(&kong.DecodeContext{Value: flag.Value, Scan: parse}, bound); err != nil {
			return fmt.Errorf("the minimum of --%s: %w", flag.Name, err)
		}
		value := fmt.Sprint(flag.Target.Interface())
		if flag.Target.Int() < bound.Int() && value != flag.Default { // a default may stand for "not set"
			return fmt.Errorf("--%s %s is too small; use %s or more", flag.Name, value, least)
		}
	}
	return nil
}
