// Package policy decides what an account may do, by its type, its permission level and the operator's rules.
//
// Rules are Cedar policies (https://docs.cedarpolicy.com) over the schema in schema.cedarschema: the principal is an account,
// the action an HTTP method, the resource an endpoint, which belongs to the operations that operations.yaml gives it.
// Guardrails are forbid policies that are part of the binary; in Cedar a forbid always wins, so that no rule read from a file
// can lift one.
//
// [ForCalls] makes the engine that stands before calls on their way out, [ForPlatform] the one that a platform asks about
// calls that came in. Both decide on the canonical path of a call, see [Canonical], and refuse what they cannot decide.
package policy
