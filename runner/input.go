package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
)

// Parameter is one declared input or output.
type Parameter struct {
	Name     string
	Type     Type
	Required bool
}

// Inputs are the values handed to a step, by name.
type Inputs map[string]Value

// Outputs are the outputs a step declares, in their order, which its result keeps.
type Outputs []Parameter

// DecodeInputs reads a JSON object of inputs, each of them typed {"type": "number", "value": 21}, bare 21, or of the
// wire {"t": "n", "v": "21"}. A bare value takes the type that declared gives its name and is typed by what it is
// otherwise; a type written beside the value wins over the declared one. Mistakes are *FieldErrors under "inputs".
func DecodeInputs(data []byte, declared []Parameter) (Inputs, error) {
	return decodeInputs(data, func(name string, raw any) (Value, error) {
		return readInput(raw, declaredType(declared, name))
	})
}

// DecodeWireInputs reads a JSON object of inputs of the wire form alone, or null for none, as clients send it over
// HTTP. Mistakes are *FieldErrors under "inputs".
func DecodeWireInputs(data []byte) (Inputs, error) {
	return decodeInputs(data, func(_ string, raw any) (Value, error) {
		object, ok := raw.(map[string]any)
		if !ok {
			return Value{}, errors.New(`must be {"t": code, "v": value}`)
		}
		return parseWire(object, 0)
	})
}

func decodeInputs(data []byte, read func(string, any) (Value, error)) (Inputs, error) {
	var errs FieldErrors
	var raw map[string]any
	if err := decodeStrict(data, &raw); err != nil {
		errs.Add("must be a JSON object of inputs: "+err.Error(), "inputs")
		return nil, errs.Err()
	}
	inputs := make(Inputs, len(raw))
	for _, name := range sortedKeys(raw) {
		value, err := read(name, raw[name])
		if err == nil {
			err = checkName(name)
		}
		errs.Merge(err, "inputs", name)
		inputs[name] = value
	}
	return inputs, errs.Err()
}

func readInput(raw any, declared Type) (Value, error) {
	if object, ok := raw.(map[string]any); ok {
		if isWire(object) {
			return parseWire(object, 0)
		}
		if isTyped(object) {
			return readTyped(object, declared)
		}
	}
	return readBare(raw, declared)
}

// isTyped reports whether an object is {"type", "value"} with at least one of the two and nothing else.
func isTyped(object map[string]any) bool {
	known := 0
	for _, key := range []string{"type", "value"} {
		if _, ok := object[key]; ok {
			known++
		}
	}
	return known > 0 && known == len(object)
}

func readTyped(object map[string]any, declared Type) (Value, error) {
	var errs FieldErrors
	t := declared
	if given, ok := object["type"]; ok && given != nil {
		name, _ := given.(string)
		parsed, err := ParseType(name)
		if err != nil {
			errs.Merge(err, "type")
			return Value{}, errs.Err()
		}
		t = parsed
	}
	value, err := readBare(object["value"], t)
	errs.Merge(err, "value")
	return value, errs.Err()
}

// readBare gives v the type t, or the type v looks like when t is empty. The elements of a bare list are typed by what
// they are.
func readBare(v any, t Type) (Value, error) {
	if t == "" {
		return infer(v, 0)
	}
	if items, ok := v.([]any); ok && t == typeList {
		list, err := inferList(items, 0)
		return Value{Type: t, V: list}, err
	}
	return NewValue(t, v)
}

var typeSuffix = regexp.MustCompile(`^[A-Za-z_]+$|^[aeo][<\[].*[>\]]$`)

// ParseInput reads "name=value[:type]" from a command line. Without a type the value takes the declared one, or is a
// string. Lists, files and options are written as JSON. Mistakes are *FieldErrors under "inputs".
func ParseInput(arg string, declared []Parameter) (string, Value, error) {
	var errs FieldErrors
	name, text, ok := strings.Cut(arg, "=")
	name = strings.TrimSpace(name)
	if !ok || name == "" {
		errs.Add(fmt.Sprintf("%q is not name=value[:type]", arg), "inputs")
		return "", Value{}, errs.Err()
	}
	if err := checkName(name); err != nil {
		errs.Merge(err, "inputs", name)
		return "", Value{}, errs.Err()
	}
	t := declaredType(declared, name)
	if i := strings.LastIndexByte(text, ':'); i >= 0 && typeSuffix.MatchString(text[i+1:]) {
		given, err := ParseType(text[i+1:])
		if err != nil {
			errs.Add(fmt.Sprintf("%s; where the colon belongs to the value, write the type after it: %s:string", err, arg),
				"inputs", name)
			return "", Value{}, errs.Err()
		}
		t, text = given, text[:i]
	}
	value, err := readText(text, t)
	errs.Merge(err, "inputs", name)
	return name, value, errs.Err()
}

// readText reads a value written as text: JSON for the types that are not one string.
func readText(text string, t Type) (Value, error) {
	if t == "" {
		t = typeString
	}
	_, isArray := t.Element()
	structured := isArray || t == typeList || t == typeFile || t.isOption() && strings.HasPrefix(text, "{")
	if !structured {
		return NewValue(t, text)
	}
	var v any
	if err := decodeStrict([]byte(text), &v); err != nil {
		return Value{}, fmt.Errorf("must be JSON: %w", err)
	}
	return readBare(v, t)
}

// CheckInputs compares inputs with what a step declares: a required input that is missing or null, and an input that is
// not declared, are reported as *FieldErrors under "inputs".
func CheckInputs(declared []Parameter, inputs Inputs) error {
	var errs FieldErrors
	for _, p := range declared {
		value, given := inputs[p.Name]
		switch {
		case p.Required && !given:
			errs.Add("is required but was not supplied", "inputs", p.Name)
		case p.Required && value.V == nil:
			errs.Add("is required and must not be null", "inputs", p.Name)
		}
	}
	for _, name := range sortedKeys(inputs) {
		if _, ok := find(declared, name); !ok {
			errs.Add("is not an input of this step", "inputs", name)
		}
	}
	return errs.Err()
}

// DecodeOutputs reads a JSON object of output types, {"doubled": "number"} or {"doubled": {"type": "number"}}, or null
// for none, keeping its order. Mistakes are *FieldErrors under "output_types".
func DecodeOutputs(data []byte) (Outputs, error) {
	var errs FieldErrors
	var types map[string]any
	if err := decodeStrict(data, &types); err != nil {
		errs.Add("must be a JSON object of output types: "+err.Error(), "output_types")
		return nil, errs.Err()
	}
	var outputs Outputs
	for _, name := range keysInOrder(data) {
		if _, twice := find(outputs, name); twice {
			continue
		}
		given := types[name]
		if object, ok := given.(map[string]any); ok && len(object) == 1 {
			given = object["type"]
		}
		text, ok := given.(string)
		if !ok {
			errs.Add("must be the name of a data type", "output_types", name)
			continue
		}
		output, err := newOutput(name, text)
		errs.Merge(err, "output_types", name)
		outputs = append(outputs, output)
	}
	return outputs, errs.Err()
}

// ParseOutput reads "name[:type]" from a command line; without a type the output is a string. Mistakes are
// *FieldErrors under "output_types".
func ParseOutput(arg string) (Parameter, error) {
	name, typeName, typed := strings.Cut(arg, ":")
	if !typed {
		typeName = string(typeString)
	}
	output, err := newOutput(strings.TrimSpace(name), typeName)
	var errs FieldErrors
	errs.Merge(err, "output_types", strings.TrimSpace(name))
	return output, errs.Err()
}

func newOutput(name, typeName string) (Parameter, error) {
	if err := checkOutputName(name); err != nil {
		return Parameter{}, err
	}
	t, err := ParseType(typeName)
	return Parameter{Name: name, Type: t}, err
}

func checkOutputName(name string) error {
	if name == "log" {
		return errors.New(`"log" is the step's logging function; give the output another name`)
	}
	return checkName(name)
}

// checkName accepts what a step can write after a dot and does not belong to Python itself.
func checkName(name string) error {
	for i, r := range name {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return fmt.Errorf("%s cannot be written as a Python attribute; use letters, digits and _", describe(name))
		}
	}
	if name == "" || strings.HasPrefix(name, "__") {
		return fmt.Errorf("%s cannot be used as a name", describe(name))
	}
	return nil
}

func declaredType(declared []Parameter, name string) Type {
	p, _ := find(declared, name)
	return p.Type
}

func find(parameters []Parameter, name string) (Parameter, bool) {
	for _, p := range parameters {
		if p.Name == name {
			return p, true
		}
	}
	return Parameter{}, false
}

// decodeStrict decodes exactly one JSON value and keeps numbers as they are written.
func decodeStrict(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the first value")
	}
	return nil
}

// keysInOrder lists the keys of a JSON object that is known to be well formed.
func keysInOrder(data []byte) []string {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var keys []string
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil
	}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return keys
		}
		keys = append(keys, key.(string))
		var skipped json.RawMessage
		if err := decoder.Decode(&skipped); err != nil {
			return keys
		}
	}
	return keys
}
