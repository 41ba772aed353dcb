package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// State is the state of an execution.
type State string

// The states in order; see the package's documentation. Expired means that the result was deleted after its retention
// time, and only the tombstone is left.
const (
	Queued   State = "queued"
	Claimed  State = "claimed"
	Started  State = "started"
	Finished State = "finished"
	Expired  State = "expired"
)

// The states of a callback, in the record's field callback. The field is empty if the execution has no callback.
const (
	CallbackQueued    = "queued"
	CallbackDelivered = "delivered"
	CallbackFailed    = "failed"
)

// unfinishedLimit is how long an untouched record is kept: far longer than asynq waits before it delivers again.
const unfinishedLimit = 7 * 24 * time.Hour

// ErrConflict means that the id was submitted before with a different request.
var ErrConflict = errors.New("an execution with this id was submitted with a different request; use another id")

// records keeps one hash for each execution, in kizen:{BUSINESS}:run:ID:
//
//	version      of the program that made it, see [wire.Version]
//	state        a State
//	digest       of the submitted request
//	owner        the attempt that has it: WORKER/ATTEMPT
//	attempts     how often it was claimed
//	deaths       how often its worker died between claim and start
//	reason       why the last attempt failed
//	outcome      how it ended, with result, its document, and finished_at, in milliseconds since 1970
//	callback     the state of its callback, with callback_at, in milliseconds since 1970, and callback_error
//	late_outcome the outcome that its worker reported after the fleet had ended it, with late_result and late_at
//	dead_letter  why its task was archived
//	run          how often a dead letter was run again
//
// A second key, kizen:{BUSINESS}:ran:ID, keeps the digest. This tombstone outlives the hash. Every change is a script
// that checks state and owner first. Each script is idempotent, because it is sent again if its reply is lost.
//
// Documents larger than 1 KiB are compressed. The sorted set kizen:{BUSINESS}:results indexes the finished executions
// of a business by their end, as SIZE/ID, and kizen:{BUSINESS}:results:bytes is the sum of the sizes. A record enters
// the index when its callback is queued, or at once if it has none. The oldest records beyond the [Retention] are
// deleted.
type records struct {
	redis     redis.UniversalClient
	durable   Durability
	retention Retention
}

// Retention limits the results that a business has in Redis. The newest result is kept even if it exceeds Bytes.
type Retention struct {
	// Age is how long a result is kept.
	Age time.Duration
	// Count and Bytes limit the number and the stored size of the results of one business. Zero means no limit.
	Count, Bytes int64
}

// ticket identifies one attempt. Only the attempt that owns a record may change it.
type ticket struct{ business, id, owner string }

// newTicket returns the ticket of a new attempt by a worker.
func newTicket(business, id, worker string) ticket {
	return ticket{business, id, worker + "/" + uuid.NewString()}
}

// worker returns the worker that makes the attempt.
func (t ticket) worker() string {
	worker, _, _ := strings.Cut(t.owner, "/")
	return worker
}

func (t ticket) keys() []string {
	results := "kizen:{" + t.business + "}:results"
	return []string{wire.RecordKey(t.business, t.id), tombstone.Key(t.business, t.id), results, results + ":bytes"}
}

// retainFunction adds a finished record to the index of its business and deletes the oldest records beyond the
// retention, at most 20 per call. It also removes entries whose record has expired.
const retainFunction = `
local function retain(id, size, at, age, count, bytes)
  local member = size .. '/' .. id
  if redis.call('ZADD', KEYS[3], at, member) == 0 then return end
  local total = redis.call('INCRBY', KEYS[4], size)
  redis.call('PEXPIRE', KEYS[3], age)
  redis.call('PEXPIRE', KEYS[4], age)
  for _ = 1, 20 do
    local oldest = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
    local expired = tonumber(oldest[2]) <= at - age
    local many = count > 0 and redis.call('ZCARD', KEYS[3]) > count
    if oldest[1] == member or not (expired or many or (bytes > 0 and total > bytes)) then return end
    local oldSize, oldID = string.match(oldest[1], '^(%d+)/(.*)$')
    redis.call('ZREM', KEYS[3], oldest[1])
    total = redis.call('DECRBY', KEYS[4], oldSize)
    if not expired then redis.call('DEL', string.sub(KEYS[1], 1, -#id - 1) .. oldID) end
  end
end`

// claim is the reply to a claim, which succeeded if owner is the ticket's.
type claim struct {
	state    State
	owner    string
	attempts int64
	reason   string
	deaths   int64
}

var claimScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner', 'reason', 'digest', 'version', 'attempts', 'deaths')
if known[5] and tonumber(known[5]) > tonumber(ARGV[5]) then return {'newer', '', 0, '', 0} end
local digest = known[4] or redis.call('GET', KEYS[2])
if digest and digest ~= ARGV[3] then return {'conflict', '', 0, '', 0} end
if not known[1] and digest then return {'expired', '', 0, '', 0} end
if known[1] and known[1] ~= 'queued' and (known[1] ~= 'claimed' or known[2] ~= ARGV[4]) then
  return {known[1], known[2] or '', 0, '', 0}
end
local attempts, deaths = tonumber(known[6] or '0') + 1, tonumber(known[7] or '0')
if known[1] == 'claimed' then deaths = deaths + 1 end
redis.call('HSET', KEYS[1], 'state', 'claimed', 'owner', ARGV[1], 'digest', ARGV[3], 'version', ARGV[6], 'attempts', attempts,
  'deaths', deaths)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'claimed', ARGV[1], attempts, known[3] or '', deaths}`)

// claim claims a waiting execution, or one that the attempt from had claimed before its worker died. If from is empty,
// it claims only a waiting execution. The first claim creates the record.
func (r records) claim(ctx context.Context, t ticket, digest, from string) (claim, error) {
	answer, err := claimScript.Run(ctx, r.redis, t.keys(), t.owner, unfinishedLimit.Milliseconds(), digest, from,
		wire.Version,
		wire.PlainVersion).Slice()
	if err != nil {
		return claim{}, err
	}
	c := claim{}
	if len(answer) == 5 {
		state, _ := answer[0].(string)
		c.state = State(state)
		c.owner, _ = answer[1].(string)
		c.attempts, _ = answer[2].(int64)
		c.reason, _ = answer[3].(string)
		c.deaths, _ = answer[4].(int64)
	}
	switch c.state {
	case Queued, Claimed, Started, Finished, Expired:
		return c, nil
	case "conflict":
		return claim{}, ErrConflict
	}
	return claim{}, fmt.Errorf("the record's state is %q: %w", c.state, errNewer)
}

var startScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner')
if known[2] ~= ARGV[1] or (known[1] ~= 'claimed' and known[1] ~= 'started') then return 0 end
redis.call('HSET', KEYS[1], 'state', 'started')
redis.call('SET', KEYS[2], redis.call('HGET', KEYS[1], 'digest'), 'PX', ARGV[2])
return 1`)

// start records that the step's code may begin, as durably as configured. It returns false if another attempt has the
// execution. From then on the tombstone prevents serve on the same Redis from running the same id.
func (r records) start(ctx context.Context, t ticket) (bool, error) {
	return r.durable.run(ctx, r.redis, startScript, t.keys(), t.owner, tombstone.Limit.Milliseconds())
}

var releaseScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner')
if known[2] ~= ARGV[1] or (known[1] ~= 'claimed' and known[1] ~= 'started') then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'reason', ARGV[2])
redis.call('HDEL', KEYS[1], 'owner')
if ARGV[3] == '0' then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
return 1`)

// release gives back an execution whose code this attempt has not started and will not start.
func (r records) release(ctx context.Context, t ticket, reason string, counted bool) error {
	return releaseScript.Run(ctx, r.redis, t.keys(), t.owner, reason, counted).Err()
}

var restoreScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner')
if known[1] == 'finished' or (known[1] == 'started' and known[2] ~= ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'state', 'started', 'owner', ARGV[1], 'digest', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`)

// restore records again that the step's code has started, because Redis may have lost that.
func (r records) restore(ctx context.Context, t ticket, digest string) error {
	return restoreScript.Run(ctx, r.redis, t.keys(), t.owner, digest, unfinishedLimit.Milliseconds()).Err()
}

var finishScript = redis.NewScript(retainFunction + `
local known = redis.call('HMGET', KEYS[1], 'state', 'owner', 'outcome', 'late_outcome')
local ours = not known[1] or known[2] == ARGV[1]
if known[1] == 'finished' and ARGV[8] == '1' and not known[4] and not (ours and known[3] == ARGV[2]) then
  redis.call('HSET', KEYS[1], 'late_outcome', ARGV[2], 'late_result', ARGV[3], 'late_at', ARGV[4])
  if ARGV[10] ~= ARGV[11] then redis.call('HSET', KEYS[1], 'version', ARGV[10]) end
  return {known[3], 'late'}
end
if not ours then return {'', ''} end
if known[1] == 'finished' then return {known[3], ''} end
redis.call('HSET', KEYS[1], 'state', 'finished', 'owner', ARGV[1], 'outcome', ARGV[2], 'result', ARGV[3], 'finished_at', ARGV[4],
  'digest', ARGV[6], 'version', ARGV[10])
if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'dead_letter', ARGV[9]) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[7])
if ARGV[12] == '1' or (ARGV[9] == '' and redis.call('HEXISTS', KEYS[1], 'callback') == 1) then
  retain(ARGV[13], #ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[14]), tonumber(ARGV[15]))
end
return {ARGV[2], ''}`)

// finish records how the execution of a ticket ended, and returns the outcome in the record. If the fleet had already
// ended the execution, that is the fleet's outcome. If another attempt has the execution, it is empty. If the fleet
// had ended the execution and this attempt had begun the step, finish stores this attempt's result beside that
// outcome, once, and late is true. If Redis has lost the record, finish creates it again, because the execution must
// not run twice.
func (r records) finish(ctx context.Context, t ticket, digest string, e ending,
	keep time.Duration) (stands string, late bool, err error) {
	document, version := payload.Compress(e.result), wire.PlainVersion
	if payload.Compressed(document) {
		version = wire.StoredVersion
	}
	answer, err := finishScript.Run(ctx, r.redis, t.keys(), t.owner, string(e.outcome), document, e.at.UnixMilli(),
		keep.Milliseconds(), digest, max(keep, tombstone.Limit).Milliseconds(), e.begun, e.deadLetter, version,
		wire.PlainVersion,
		!e.notifies && e.deadLetter == "", t.id, r.retention.Count, r.retention.Bytes).StringSlice()
	if err != nil || len(answer) != 2 {
		return "", false, err
	}
	return answer[0], answer[1] == "late", nil
}

var touchScript = redis.NewScript(`return redis.call('PEXPIRE', KEYS[1], ARGV[1])`)

// awaitDurable waits until the end of an execution is as durable as configured. Redis confirms the new write only
// together with all earlier ones.
func (r records) awaitDurable(ctx context.Context, t ticket, keep time.Duration) error {
	if !r.durable.waits() {
		return nil
	}
	_, err := r.durable.run(ctx, r.redis, touchScript, t.keys()[:1], keep.Milliseconds())
	return err
}

var reopenScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'dead_letter') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'attempts', 0, 'deaths', 0)
redis.call('HINCRBY', KEYS[1], 'run', 1)
redis.call('HDEL', KEYS[1], 'owner', 'outcome', 'result', 'finished_at', 'callback', 'callback_at', 'callback_error', 'dead_letter',
  'late_outcome', 'late_result', 'late_at')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`)

// reopen lets a dead letter run again.
func (r records) reopen(ctx context.Context, business, id, deadLetter string) error {
	keys := ticket{business: business, id: id}.keys()
	return reopenScript.Run(ctx, r.redis, keys, deadLetter, unfinishedLimit.Milliseconds()).Err()
}

var cancelScript = redis.NewScript(`
local state, version = unpack(redis.call('HMGET', KEYS[1], 'state', 'version'))
if version and tonumber(version) > tonumber(ARGV[7]) then return 'newer' end
if state and state ~= 'queued' then return state end
if not state and redis.call('EXISTS', KEYS[2]) == 1 then return 'finished' end
redis.call('HSET', KEYS[1], 'state', 'finished', 'owner', ARGV[1], 'outcome', ARGV[2], 'result', ARGV[3], 'finished_at', ARGV[4],
  'digest', ARGV[5], 'version', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
return ''`)

// cancel ends an execution that no worker has, and returns "". Otherwise it returns the state of the record.
func (r records) cancel(ctx context.Context, t ticket, digest string) (State, error) {
	e, err := cancelledEnd(t.id)
	if err != nil {
		return "", err
	}
	state, err := cancelScript.Run(ctx, r.redis, t.keys(), t.owner, string(e.outcome), []byte(e.result), e.at.UnixMilli(),
		digest,
		tombstone.Limit.Milliseconds(), wire.Version, wire.PlainVersion).Text()
	return State(state), err
}

var callbackScript = redis.NewScript(retainFunction + `
if redis.call('EXISTS', KEYS[1]) == 0 then return '' end
local known, at, dead = unpack(redis.call('HMGET', KEYS[1], 'callback', 'finished_at', 'dead_letter'))
if ARGV[1] == 'queued' and (known == 'delivered' or known == 'failed') then return known end
redis.call('HSET', KEYS[1], 'callback', ARGV[1], 'callback_at', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'callback_error', ARGV[3])
elseif known then redis.call('HDEL', KEYS[1], 'callback_error') end
if not known and at and not dead then
  retain(ARGV[4], redis.call('HSTRLEN', KEYS[1], 'result'), tonumber(at), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
end
return known or ''`)

// setCallback records the state of the callback of an execution, and returns the previous state.
func (r records) setCallback(ctx context.Context, business, id, state, failure string) (before string, err error) {
	return callbackScript.Run(ctx, r.redis, ticket{business: business, id: id}.keys(), state, time.Now().UnixMilli(),
		failure,
		id, r.retention.Age.Milliseconds(), r.retention.Count, r.retention.Bytes).Text()
}

var settleEndScript = redis.NewScript(retainFunction + `
local state, at, dead = unpack(redis.call('HMGET', KEYS[1], 'state', 'finished_at', 'dead_letter'))
if state ~= 'finished' or dead then return 0 end
local age = tonumber(ARGV[3])
local left = math.max(tonumber(at) + age - tonumber(ARGV[2]), 1)
if redis.call('PTTL', KEYS[1]) > left then redis.call('PEXPIRE', KEYS[1], left) end
retain(ARGV[1], redis.call('HSTRLEN', KEYS[1], 'result'), tonumber(at), age, tonumber(ARGV[4]), tonumber(ARGV[5]))
return 1`)

// settleEnd applies the retention to a record that this worker did not finish: an operator, who does not know the
// retention, may have cancelled the execution. The caller has queued its callback.
func (r records) settleEnd(ctx context.Context, business, id string) error {
	return settleEndScript.Run(ctx, r.redis, ticket{business: business, id: id}.keys(), id, time.Now().UnixMilli(),
		r.retention.Age.Milliseconds(), r.retention.Count, r.retention.Bytes).Err()
}

var discardScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'dead_letter') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)

// discard deletes the record of a dead letter. The tombstone stays, so the id does not run again.
func (r records) discard(ctx context.Context, business, id, deadLetter string) error {
	keys := ticket{business: business, id: id}.keys()[:1]
	return discardScript.Run(ctx, r.redis, keys, deadLetter).Err()
}

// ending is how an execution ended.
type ending struct {
	outcome outcomes.Outcome
	result  json.RawMessage
	at      time.Time
	// begun reports whether the reporting attempt had begun the step's code.
	begun bool
	// notifies reports whether the execution has a callback.
	notifies bool
	// deadLetter is why the task is archived; empty if it is not.
	deadLetter string
}

// entry is the content of a record.
type entry struct {
	ticket
	state    State
	attempts int64
	run      int64
	callback callbackState
	ending
	late ending
}

// callbackState is the recorded state of a callback.
type callbackState struct {
	state, failure string
	at             time.Time
}

func (r records) read(ctx context.Context, business, id string) (entry, error) {
	h, err := r.redis.HGetAll(ctx, wire.RecordKey(business, id)).Result()
	if err != nil {
		return entry{}, fmt.Errorf("read the record of execution %s: %w", id, err)
	}
	number := func(field string) int64 {
		n, _ := strconv.ParseInt(h[field], 10, 64) // only scripts write this field
		return n
	}
	var documents [2][]byte
	for i, field := range []string{"result", "late_result"} {
		if documents[i], err = payload.Expand([]byte(h[field])); err != nil {
			return entry{}, fmt.Errorf("read the record of execution %s: %s: %w", id, field, err)
		}
	}
	return entry{
		ticket: ticket{business, id, h["owner"]}, state: State(h["state"]), attempts: number("attempts"), run: number("run"),
		callback: callbackState{h["callback"], h["callback_error"], time.UnixMilli(number("callback_at"))},
		ending: ending{
			outcome: outcomes.Outcome(h["outcome"]), result: documents[0], at: time.UnixMilli(number("finished_at")),
			deadLetter: h["dead_letter"],
		},
		late: ending{outcome: outcomes.Outcome(h["late_outcome"]), result: documents[1],
			at: time.UnixMilli(number("late_at"))},
	}, nil
}
