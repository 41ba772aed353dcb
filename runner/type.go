package runner

import (
	"fmt"
	"regexp"
	"strings"
)

// Type is the wire code of a data type: "s", "n", "b", "d", "dt", "p", "u", "e", "f", "l", an entity of one object
// "e<object_id>", a field option or stage "o<object_id,field_id>", or a typed array "a[code]".
type Type string

const (
	typeString   Type = "s"
	typeEmail    Type = "em"
	typeNumber   Type = "n"
	typeBoolean  Type = "b"
	typeDate     Type = "d"
	typeDatetime Type = "dt"
	typePhone    Type = "p"
	typeUUID     Type = "u"
	typeEmployee Type = "e"
	typeFile     Type = "f"
	typeList     Type = "l"
)

// typeNames maps human-readable names to codes. The name "email" maps to a string, as existing clients send it, while
// the code "em" is kept.
var typeNames = map[string]Type{
	"text": typeString, "string": typeString, "email": typeString,
	"number": typeNumber, "integer": typeNumber,
	"boolean": typeBoolean, "date": typeDate, "datetime": typeDatetime,
	"phone": typePhone, "phonenumber": typePhone, "phone_number": typePhone,
	"uuid": typeUUID, "employee": typeEmployee, "entity": typeEmployee,
	"file": typeFile, "list": typeList,
}

var simpleTypes = map[Type]bool{
	typeString: true, typeEmail: true, typeNumber: true, typeBoolean: true, typeDate: true, typeDatetime: true,
	typePhone: true, typeUUID: true, typeEmployee: true, typeFile: true, typeList: true,
}

var (
	entityCode = regexp.MustCompile(`^e<[A-Za-z0-9_-]+>$`)
	optionCode = regexp.MustCompile(`^o<[A-Za-z0-9_-]+,[A-Za-z0-9_-]+>$`)
)

// maxCode is the longest code in bytes: the ids in it are UUIDs.
const maxCode = 512

// UnknownTypeError reports an unknown data type. Only the beginning of a long name is kept.
type UnknownTypeError struct {
	Name string
}

func (e *UnknownTypeError) Error() string { return fmt.Sprintf("Invalid Kizen type '%s'", e.Name) }

// ParseType resolves a human name ("number") or a wire code ("n") to the code. Anything else is an *UnknownTypeError.
func ParseType(name string) (Type, error) {
	trimmed := strings.TrimSpace(name)
	if t, ok := typeNames[strings.ToLower(trimmed)]; ok {
		return t, nil
	}
	return parseCode(trimmed)
}

func parseCode(code string) (Type, error) {
	element := code
	if len(code) > maxCode {
		return "", &UnknownTypeError{Name: ellipsis(code, 100)}
	}
	for depth := 0; depth < maxNesting; depth++ {
		inner, isArray := strings.CutPrefix(element, "a[")
		if !isArray {
			if simpleTypes[Type(element)] || entityCode.MatchString(element) || optionCode.MatchString(element) {
				return Type(code), nil
			}
			break
		}
		inner, closed := strings.CutSuffix(inner, "]")
		if !closed {
			break
		}
		element = inner
	}
	return "", &UnknownTypeError{Name: ellipsis(code, 100)}
}

// Element returns the code of a typed array's elements, and whether t is one.
func (t Type) Element() (Type, bool) {
	inner, isArray := strings.CutPrefix(string(t), "a[")
	return Type(strings.TrimSuffix(inner, "]")), isArray
}

func (t Type) isOption() bool { return strings.HasPrefix(string(t), "o<") }
