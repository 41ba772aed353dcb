package runner

import (
	"encoding/json"
	"errors"
	"fmt"
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

// Inputs are the values passed to a step, by name.
type Inputs map[string]Value

// valueSize is the size of a value without its text, in bytes: the value itself, the memory to which it points, and an
// entry of a map.
const valueSize = 112

// Size returns the approximate size of the inputs in memory, in bytes.
func (in Inputs) Size() int64 {
	size := 0
	for name, value := range in {
		size += len(name) + sizeOf(value)
	}
	return int64(size)
}

func sizeOf(v any) int {
	size := valueSize
	switch v := v.(type) {
	case Value:
		return len(v.Type) + sizeOf(v.V)
	case string:
		size += len(v)
	case json.Number:
		size += len(v)
	case []Value:
		for _, item := range v {
			size += sizeOf(item)
		}
	case []any:
		for _, item := range v {
			size += sizeOf(item)
		}
	case map[string]any:
		for key, item := range v {
			size += len(key) + sizeOf(item)
		}
	}
	return size
}

// Outputs are the outputs that a step declares. Its result keeps their order.
type Outputs []Parameter

// DecodeInputs reads a JSON object of inputs, each typed {"type": "number", "value": 21}, bare 21, or in wire form
// {"t": "n", "v": "21"}. A bare value gets its declared type, or the type of the JSON value if none is declared; a type
// beside the value overrides the declared one. An empty text for an input that is not text means that the input is not
// supplied. Errors are *FieldErrors under "inputs".
func DecodeInputs(data []byte, declared []Parameter) (Inputs, error) {
	return decodeInputs(data, func(r *reader, name string, raw any) (Value, bool, error) {
		return r.input(raw, declaredType(declared, name))
	})
}

// DecodeWireInputs reads a JSON object of inputs in the wire form only, or null for none, as clients send it over HTTP.
// An empty text for an input that is not text means that the input is not supplied. Errors are *FieldErrors under
// "inputs".
func DecodeWireInputs(data []byte) (Inputs, error) {
	return decodeInputs(data, func(r *reader, _ string, raw any) (Value, bool, error) {
		object, ok := raw.(map[string]any)
		if !ok {
			return Value{}, false, errors.New(`must be {"t": code, "v": value}`)
		}
		return r.wireInput(object)
	})
}

func decodeInputs(data []byte, read func(r *reader, name string, raw any) (value Value, supplied bool,
	err error)) (Inputs, error) {
	defer takeTurn(len(data))()
	var errs FieldErrors
	var raw map[string]any
	err := decodeStrict(data, &raw)
	if err == nil && len(raw) > MaxNames {
		err = fmt.Errorf("it has more than %d of them", MaxNames)
	}
	if err != nil {
		errs.Add("must be a JSON object of inputs: "+err.Error(), "inputs")
		return nil, errs.Err()
	}
	inputs := make(Inputs, len(raw))
	r := new(reader)
	for _, name := range sortedKeys(raw) {
		value, supplied, err := read(r, name, raw[name])
		if err == nil {
			err = checkName(name)
		}
		errs.Merge(err, "inputs", name)
		if supplied {
			inputs[name] = value
		}
	}
	return inputs, errs.Err()
}

// isEmpty reports whether v is how clients send an empty input of type t.
func isEmpty(t Type, v any) bool {
	text, ok := v.(string)
	return ok && t != "" && t != typeString && t != typeEmail && strings.Trim(text, ignored) == ""
}

func (r *reader) wireInput(object map[string]any) (Value, bool, error) {
	if code, ok := object["t"].(string); ok && isEmpty(Type(code), object["v"]) {
		if _, err := parseCode(code); err == nil {
			return Value{}, false, nil
		}
	}
	value, err := r.wire(object)
	return value, true, err
}

func (r *reader) input(raw any, declared Type) (Value, bool, error) {
	if object, ok := raw.(map[string]any); ok {
		if isWire(object) {
			return r.wireInput(object)
		}
		if isTyped(object) {
			return r.typedInput(object, declared)
		}
	}
	return r.bareInput(raw, declared)
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

func (r *reader) typedInput(object map[string]any, declared Type) (Value, bool, error) {
	var errs FieldErrors
	t := declared
	if given, ok := object["type"]; ok && given != nil {
		name, _ := given.(string)
		parsed, err := ParseType(name)
		if err != nil {
			errs.Merge(err, "type")
			return Value{}, false, errs.Err()
		}
		t = parsed
	}
	value, supplied, err := r.bareInput(object["value"], t)
	errs.Merge(err, "value")
	return value, supplied, errs.Err()
}

// bareInput gives v the type t, or, if t is empty, the type of its JSON value. The elements of a bare list get the
// types of their JSON values.
func (r *reader) bareInput(v any, t Type) (Value, bool, error) {
	if isEmpty(t, v) {
		return Value{}, false, nil
	}
	var value Value
	var err error
	switch items, isList := v.([]any); {
	case t == "":
		value, err = r.infer(v)
	case isList && t == typeList:
		value.Type = t
		value.V, err = r.inferList(items)
	default:
		value, err = r.typed(t, v)
	}
	return value, true, err
}

var typeSuffix = regexp.MustCompile(`^[A-Za-z_]+$|^[aeo][<\[].*[>\]]$`)

// ParseInput reads "name=value[:type]" from a command line. Without a type the value takes the declared one, or is a
// string. Lists, files and options are written as JSON. An empty value of a type other than text counts as not
// supplied. Errors are *FieldErrors under "inputs".
func ParseInput(arg string, declared []Parameter) (name string, value Value, supplied bool, err error) {
	var errs FieldErrors
	name, text, ok := strings.Cut(arg, "=")
	name = strings.TrimSpace(name)
	if !ok || name == "" {
		errs.Add(fmt.Sprintf("%q is not name=value[:type]", arg), "inputs")
		return "", Value{}, false, errs.Err()
	}
	if err := checkName(name); err != nil {
		errs.Merge(err, "inputs", name)
		return "", Value{}, false, errs.Err()
	}
	t := declaredType(declared, name)
	if i := strings.LastIndexByte(text, ':'); i >= 0 && typeSuffix.MatchString(text[i+1:]) {
		given, err := ParseType(text[i+1:])
		if err != nil {
			errs.Add(fmt.Sprintf("%s; where the colon belongs to the value, write the type after it: %s:string", err, arg),
				"inputs", name)
			return "", Value{}, false, errs.Err()
		}
		t, text = given, text[:i]
	}
	if t == "" {
		t = typeString
	}
	value, supplied, err = new(reader).bareInput(text, t)
	errs.Merge(err, "inputs", name)
	return name, value, supplied, errs.Err()
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
// for none, and keeps its order. Errors are *FieldErrors under "output_types".
func DecodeOutputs(data []byte) (Outputs, error) {
	var errs FieldErrors
	var types map[string]any
	err := decodeStrict(data, &types)
	if err == nil && len(types) > MaxNames {
		err = fmt.Errorf("it has more than %d of them", MaxNames)
	}
	if err != nil {
		errs.Add("must be a JSON object of output types: "+err.Error(), "output_types")
		return nil, errs.Err()
	}
	var outputs Outputs
	for _, name := range keysInOrder(data) {
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

// ParseOutput reads "name[:type]" from a command line; without a type the output is a string. Errors are *FieldErrors
// under "output_types".
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

// maxName is the longest name of an input or an output in bytes.
const maxName = 255

// checkName accepts names that a step can write after a dot and that do not belong to Python itself.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%s is longer than %d bytes", describe(name), maxName)
	}
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
