package telemetry

import (
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// depthLimit is the maximal depth of printed values; deeper ones are omitted.
const depthLimit = 8

func redactAttrs(attrs []slog.Attr, secret bool) []slog.Attr {
	clean := make([]slog.Attr, len(attrs))
	for i, attr := range attrs {
		clean[i] = redactAttr(attr, secret)
	}
	return clean
}

// redactAttr redacts one attribute. Everything inside a group with a secret's name is secret.
func redactAttr(attr slog.Attr, secret bool) slog.Attr {
	if attr.Equal(slog.Attr{}) {
		return attr // handlers ignore an empty attribute
	}
	secret = secret || redacted.Field(attr.Key)
	key := Redact(attr.Key)
	value := attr.Value.Resolve()
	switch value.Kind() {
	case slog.KindGroup:
		return slog.Attr{Key: key, Value: slog.GroupValue(redactAttrs(value.Group(), secret)...)}
	case slog.KindBool, slog.KindDuration, slog.KindTime, slog.KindInt64, slog.KindUint64, slog.KindFloat64:
		return slog.Attr{Key: key, Value: value}
	}
	if secret {
		return slog.String(key, redacted.Mark)
	}
	if value.Kind() == slog.KindString {
		return slog.String(key, Redact(value.String()))
	}
	// The output of the next handler for an error, a structure or a byte slice cannot be inspected afterwards, so it is
	// printed here.
	var text strings.Builder
	printValue(&text, reflect.ValueOf(value.Any()), 0)
	return slog.String(key, Redact(text.String()))
}

// printValue prints a value like %+v, but follows pointers, prints bytes as text, and omits fields with a secret's
// name.
func printValue(out *strings.Builder, v reflect.Value, depth int) {
	switch {
	case !v.IsValid():
		out.WriteString("<nil>")
		return
	case depth > depthLimit:
		out.WriteString("...")
		return
	case printSelf(out, v):
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		printValue(out, v.Elem(), depth+1)
	case reflect.Struct:
		printStruct(out, v, depth)
	case reflect.Map:
		printMap(out, v, depth)
	case reflect.Slice, reflect.Array:
		printList(out, v, depth)
	case reflect.Chan, reflect.Func, reflect.UnsafePointer:
		out.WriteString(v.Type().String())
	default:
		fmt.Fprintf(out, "%v", v)
	}
}

// printSelf uses a value's own method to print it, and reports whether it has one.
func printSelf(out *strings.Builder, v reflect.Value) bool {
	valuer, printer := reflect.TypeFor[slog.LogValuer](), reflect.TypeFor[fmt.Stringer]()
	failure, formatter := reflect.TypeFor[error](), reflect.TypeFor[fmt.Formatter]()
	t := v.Type()
	itself := t.Implements(valuer) || t.Implements(printer) || t.Implements(failure) || t.Implements(formatter)
	switch {
	case t == reflect.TypeFor[*url.Userinfo]():
		out.WriteString(redacted.Mark)
	case t.Kind() == reflect.Interface || !itself:
		return false
	case !v.CanInterface():
		// The methods of an unexported field cannot be called, although they may exist to hide its value.
		out.WriteString(t.String())
	case t.Implements(valuer):
		out.WriteString(redactAttr(slog.Any("value", v.Interface()), false).Value.String())
	default:
		fmt.Fprintf(out, "%+v", v.Interface())
	}
	return true
}

func printStruct(out *strings.Builder, v reflect.Value, depth int) {
	out.WriteByte('{')
	for i := range v.NumField() {
		if i > 0 {
			out.WriteByte(' ')
		}
		name := v.Type().Field(i).Name
		out.WriteString(name + ":")
		printNamed(out, name, v.Field(i), depth)
	}
	out.WriteByte('}')
}

func printMap(out *strings.Builder, v reflect.Value, depth int) {
	out.WriteString("map[")
	for i, entry := 0, v.MapRange(); entry.Next(); i++ {
		if i > 0 {
			out.WriteByte(' ')
		}
		var name strings.Builder
		printValue(&name, entry.Key(), depth+1)
		out.WriteString(name.String() + ":")
		printNamed(out, name.String(), entry.Value(), depth)
	}
	out.WriteByte(']')
}

func printNamed(out *strings.Builder, name string, v reflect.Value, depth int) {
	if redacted.Field(name) {
		out.WriteString(redacted.Mark)
		return
	}
	printValue(out, v, depth+1)
}

func printList(out *strings.Builder, v reflect.Value, depth int) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		for i := range v.Len() {
			out.WriteByte(byte(v.Index(i).Uint()))
		}
		return
	}
	out.WriteByte('[')
	for i := range v.Len() {
		if i > 0 {
			out.WriteByte(' ')
		}
		printValue(out, v.Index(i), depth+1)
	}
	out.WriteByte(']')
}
