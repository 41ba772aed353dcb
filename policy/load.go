package policy

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

//go:embed schema.cedarschema
var schemaText string

//go:embed guardrails.cedar
var guardrailsText []byte

//go:embed permissions.cedar
var permissionsText []byte

//go:embed calls.cedar
var callsText []byte

//go:embed connections.cedarschema
var connectionSchemaText string

//go:embed connections.cedar
var connectionsText []byte

// Error is an error in a policy file, with its position.
type Error struct {
	File         string
	Line, Column int    // from 1; 0 when unknown
	Policy       string // the policy's ID; empty if unknown
	Err          error
}

// Error implements error.
func (e *Error) Error() string {
	text := e.File
	if e.Line > 0 {
		text += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	if e.Policy != "" {
		text += fmt.Sprintf(": policy %q", e.Policy)
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// rule is a policy with its ID and reason.
type rule struct {
	policy  *cedar.Policy
	bare    *cedar.Policy // the policy without its scope, see withoutScope
	id      string
	reason  string
	builtIn bool
}

// reserved lists the ID prefixes of built-in policies.
var reserved = []string{"guardrail.", "permission.", "default."}

// loader reads policies and collects their errors.
type loader struct {
	validator   *validate.Validator // of rules for calls
	connecting  *validate.Validator // of rules for connections
	enums       map[cedar.EntityType][]string
	rules       []rule
	connections []rule
	at          map[string]string // file and line of each ID
	errs        []error
}

func newLoader(ops operations) (*loader, error) {
	enums := enumerations(ops)
	calls, err := newValidator(schemaText + enumerationText(enums))
	if err != nil {
		return nil, err
	}
	connections, err := newValidator(schemaText + connectionSchemaText + enumerationText(enums))
	if err != nil {
		return nil, err
	}
	return &loader{validator: calls, connecting: connections, enums: enums, at: map[string]string{}}, nil
}

func newValidator(text string) (*validate.Validator, error) {
	var s schema.Schema
	if err := s.UnmarshalCedar([]byte(text)); err != nil {
		return nil, fmt.Errorf("read the policy schema: %w", err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolve the policy schema: %w", err)
	}
	return validate.New(resolved), nil
}

// enumerations returns the part of the schema that comes from tables.
func enumerations(ops operations) map[cedar.EntityType][]string {
	enums := map[cedar.EntityType][]string{"Operation": ops.names}
	for _, t := range accountTypes {
		enums["AccountType"] = append(enums["AccountType"], t.Name)
	}
	for _, level := range Levels()[1:] {
		enums["Permission"] = append(enums["Permission"], permissionID(level))
	}
	return enums
}

func enumerationText(enums map[cedar.EntityType][]string) string {
	var text strings.Builder
	for name, values := range enums {
		fmt.Fprintf(&text, "entity %s enum [\"%s\"];\n", name, strings.Join(values, `", "`))
	}
	return text.String()
}

func permissionID(level Level) string { return ManageServiceAccounts + "." + level.String() }

// addBuiltIn adds policies from the binary.
func (l *loader) addBuiltIn(file string, text []byte) { l.add(file, text, true) }

// addPath adds the policies of a file, or of every *.cedar file in a directory, in the order of their names.
func (l *loader) addPath(path string) {
	files := []string{path}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		files, err = filepath.Glob(filepath.Join(path, "*.cedar"))
		if err == nil && len(files) == 0 {
			err = errors.New("the directory contains no *.cedar file")
		}
	}
	if err != nil {
		l.unreadable(path, err)
		return
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			l.unreadable(file, err)
			continue
		}
		l.add(file, text, false)
	}
}

func (l *loader) unreadable(path string, err error) {
	var cause *fs.PathError // its own message repeats the path
	if errors.As(err, &cause) {
		err = cause.Err
	}
	l.errs = append(l.errs, fmt.Errorf("read policies from %q: %w", path, err))
}

func (l *loader) add(file string, text []byte, builtIn bool) {
	policies, err := cedar.NewPolicyListFromBytes(file, text)
	if err != nil {
		l.errs = append(l.errs, syntaxError(file, err))
		return
	}
	if len(policies) == 0 {
		l.errs = append(l.errs, &Error{File: file, Err: errors.New("it contains no policy")})
	}
	for _, p := range policies {
		r := rule{policy: p, bare: withoutScope(p), builtIn: builtIn}
		r.id, r.reason = string(p.Annotations()["id"]), string(p.Annotations()["reason"])
		at := p.Position()
		if r.id == "" {
			r.id = fmt.Sprintf("%s:%d", filepath.Base(file), at.Line)
		}
		if r.reason == "" {
			r.reason = fmt.Sprintf("policy %q decides this", r.id)
		}
		connections, mixed := scopeOfConnections((*ast.Policy)(p.AST()))
		errs := l.check(r, connections)
		if mixed != nil {
			errs = []error{mixed}
		}
		for _, err := range errs {
			l.errs = append(l.errs, &Error{File: file, Line: at.Line, Column: at.Column, Policy: r.id, Err: err})
		}
		l.at[r.id] = fmt.Sprintf("%s:%d", file, at.Line)
		if connections {
			l.connections = append(l.connections, r)
		} else {
			l.rules = append(l.rules, r)
		}
	}
}

// check returns all errors of one policy, which is about connections or about calls.
func (l *loader) check(r rule, connections bool) []error {
	var errs []error
	if first, twice := l.at[r.id]; twice {
		errs = append(errs, fmt.Errorf("the id is taken by %s; choose another @id", first))
	}
	for _, prefix := range reserved {
		if !r.builtIn && strings.HasPrefix(r.id, prefix) {
			errs = append(errs, fmt.Errorf("ids that begin with %q are reserved; choose another @id", prefix))
		}
	}
	for key := range r.policy.Annotations() {
		if key != "id" && key != "reason" {
			errs = append(errs, fmt.Errorf("unknown annotation @%s; use @id and @reason", key))
		}
	}
	tree := (*ast.Policy)(r.policy.AST())
	validator := l.validator
	if connections {
		validator = l.connecting
		errs = append(errs, unmatchableHost(func(visit func(ast.IsNode) bool) {
			ast.Inspect(eval.PolicyToNode(tree),
				visit)
		})...)
	}
	if err := validator.Policy(r.id, tree); err != nil {
		// The message already begins with the ID.
		errs = append(errs, errors.New(strings.ReplaceAll(err.Error(), "for policy `"+r.id+"`, ", "")))
	}
	return append(errs, l.unmatchableLiterals(tree)...)
}

// unmatchableLiterals finds literals that no call can match, because a forbid that never matches protects nothing. The
// validator checks neither the values of enumerations nor the form of paths.
func (l *loader) unmatchableLiterals(p *ast.Policy) []error {
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	ast.Inspect(eval.PolicyToNode(p), func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeLike:
			add(unmatchablePath(strings.ReplaceAll(strings.Trim(string(n.Value.MarshalCedar()), `"`), "*", "x")))
		case ast.NodeValue:
			switch value := n.Value.(type) {
			case cedar.String:
				add(unmatchablePath(string(value)))
			case cedar.EntityUID:
				if names, ok := l.enums[value.Type]; ok && !slices.Contains(names, string(value.ID)) {
					add(fmt.Errorf("%s does not exist; use one of %s", value, strings.Join(names, ", ")))
				}
			}
		}
		return true
	})
	return errs
}

func unmatchablePath(text string) error {
	if !strings.HasPrefix(text, "/") {
		return nil
	}
	if canonical, err := Canonical(text); err == nil && canonical == text {
		return nil
	}
	return fmt.Errorf("no path can equal %q; paths are compared decoded, in lower case, without empty and dot segments",
		text)
}

// cedarPosition matches the position in an error of the parser.
var cedarPosition = regexp.MustCompile(`<input>:(\d+):(\d+)`)

func syntaxError(file string, err error) error {
	found := &Error{File: file, Err: err}
	if at := cedarPosition.FindStringSubmatch(err.Error()); at != nil {
		found.Line, _ = strconv.Atoi(at[1])
		found.Column, _ = strconv.Atoi(at[2])
	}
	return found
}

// hasPermit reports whether any of rules allows something.
func hasPermit(rules []rule) bool {
	return slices.ContainsFunc(rules, func(r rule) bool { return r.policy.Effect() == cedar.Permit })
}
