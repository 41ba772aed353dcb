package policy

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

//go:embed operations.yaml
var operationsYAML []byte

// Operation is the name of an action for policies, and the calls that perform it.
type Operation struct {
	Name  string   `yaml:"operation"`
	In    []string `yaml:"in"`    // wider operations
	Calls []string `yaml:"calls"` // "METHOD /path/{account}"
}

// methods maps the methods with their own action to the action's group.
var methods = map[string]string{
	"GET": "read", "HEAD": "read", "OPTIONS": "read",
	"POST": "write", "PUT": "write", "PATCH": "write", "DELETE": "write", "other": "write",
}

// route is one call of an operation.
type route struct {
	method   string
	segments []string // "" matches any
	rest     bool     // the last segment also matches all segments after it
	account  int      // the index of the segment with the call's target account, or -1
	within   []string // the operation and all wider ones
}

// operations finds the operations of a call. routes is indexed by the first segment.
type operations struct {
	names  []string
	routes map[string][]route
	all    []route
}

func loadOperations(data []byte) (operations, error) {
	var listed []Operation
	if err := yaml.UnmarshalWithOptions(data, &listed, yaml.Strict()); err != nil {
		return operations{}, fmt.Errorf("read operations.yaml: %w", err)
	}
	byName := map[string]Operation{}
	for _, o := range listed {
		if _, twice := byName[o.Name]; twice || o.Name == "" {
			return operations{}, fmt.Errorf("operations.yaml: operation %q is listed twice or has no name", o.Name)
		}
		byName[o.Name] = o
	}
	found := operations{names: slices.Sorted(maps.Keys(byName)), routes: map[string][]route{}}
	for _, o := range listed {
		within, err := widen(byName, o.Name, nil)
		if err != nil {
			return operations{}, err
		}
		for _, call := range o.Calls {
			r, err := parseCall(call, within)
			if err != nil {
				return operations{}, fmt.Errorf("operations.yaml: operation %q: %w", o.Name, err)
			}
			found.routes[r.segments[0]] = append(found.routes[r.segments[0]], r)
			found.all = append(found.all, r)
		}
	}
	return found, nil
}

// widen returns name and every operation that contains it.
func widen(byName map[string]Operation, name string, seen []string) ([]string, error) {
	if slices.Contains(seen, name) {
		return seen, nil
	}
	o, ok := byName[name]
	if !ok {
		return nil, fmt.Errorf("operations.yaml: operation %q is referenced but not listed", name)
	}
	seen = append(seen, name)
	var err error
	for _, wider := range o.In {
		if seen, err = widen(byName, wider, seen); err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// restOfPath matches one or more segments at the end of a path.
const restOfPath = "{...}"

func parseCall(call string, within []string) (route, error) {
	method, path, _ := strings.Cut(call, " ")
	if methods[method] == "" || method == "other" {
		return route{}, fmt.Errorf("call %q has no method; write it like \"POST /api-keys\"", call)
	}
	if !strings.HasPrefix(path, "/") || path == "/" || strings.HasPrefix(path, "/{") {
		return route{}, fmt.Errorf("call %q has no path that begins with a name", call)
	}
	r := route{method: method, segments: strings.Split(path[1:], "/"), account: -1, within: within}
	for i, segment := range r.segments {
		switch {
		case segment == restOfPath && i == len(r.segments)-1:
			r.rest = true
			r.segments[i] = ""
		case segment == restOfPath:
			return route{}, fmt.Errorf("call %q has %s before its end", call, restOfPath)
		case segment == "{account}":
			r.account = i
			r.segments[i] = ""
		case strings.HasPrefix(segment, "{") && strings.HasSuffix(segment, "}"):
			r.segments[i] = ""
		case segment == "" || strings.ToLower(segment) != segment:
			return route{}, fmt.Errorf("call %q has a segment that is empty or not in lower case", call)
		}
	}
	return r, nil
}

// find returns the operations that a call may belong to, in any interpretation of its path, and the IDs of the accounts
// it may be about. HEAD counts as GET, and an unknown method may be any method.
func (o operations) find(method, path string) (within, accounts []string) {
	routes := o.all
	if isCanonical(path) && strings.IndexByte(path, '.') < 0 { // an ordinary path has one interpretation
		first, _, _ := strings.Cut(path[1:], "/")
		routes = o.routes[first]
	}
	for _, r := range routes {
		if !r.covers(method) {
			continue
		}
		about, ok := r.match(path)
		if !ok {
			continue
		}
		accounts = append(accounts, about...)
		if within == nil {
			within = r.within
		} else {
			within = append(slices.Clone(within), r.within...)
		}
	}
	return within, accounts
}

func (r route) covers(method string) bool {
	return method == r.method || method == "other" || method == "HEAD" && r.method == "GET"
}
