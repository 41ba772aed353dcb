package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// State is how far an execution has come.
type State string

// The states, in their order; see the package's documentation.
const (
	Queued   State = "queued"
	Claimed  State = "claimed"
	Started  State = "started"
	Finished State = "finished"
)

// unfinishedLimit is how long a record is kept that nobody touches: far longer than asynq waits to deliver again.
const unfinishedLimit = 7 * 24 * time.Hour

// ErrConflict: the id was submitted before, for something else.
var ErrConflict = errors.New("an execution with this id was submitted for something else; give this one an id of its own")

// records keeps one hash an execution, under kizen:{BUSINESS}:run:ID:
//
//	state        a State
//	digest       of what was submitted
//	owner        who has it: WORKER/ATTEMPT
//	attempts     how often it was claimed
//	reason       why the last attempt came to nothing
//	outcome      how it ended, with result, its document, and finished_at, in milliseconds since 1970
//	settled      there once its callback has been queued
//
// Every change is a script that looks at state and owner first. Each may be sent twice, as happens where an answer is lost.
type records struct{ redis redis.UniversalClient }

func recordKey(business, id string) string { return "kizen:{" + business + "}:run:" + id }

// ticket is the right of one attempt to an execution.
type ticket struct{ business, id, owner string }

// newTicket names an attempt of a worker.
func newTicket(business, id, worker string) ticket {
	return ticket{business, id, worker + "/" + uuid.NewString()}
}

// worker is whose attempt a ticket is.
func (t ticket) worker() string {
	worker, _, _ := strings.Cut(t.owner, "/")
	return worker
}

func (t ticket) keys() []string { return []string{recordKey(t.business, t.id)} }

// claim is what became of a claim. Unless State is Claimed, owner is somebody else's.
type claim struct {
	state    State
	owner    string
	attempts int64
	reason   string
}

var claimScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner', 'reason', 'digest')
if known[4] and known[4] ~= ARGV[3] then return {'conflict', '', 0, ''} end
if known[1] and known[1] ~= 'queued' and known[1] ~= 'claimed' then return {known[1], known[2] or '', 0, ''} end
redis.call('HSET', KEYS[1], 'state', 'claimed', 'owner', ARGV[1], 'digest', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'claimed', ARGV[1], redis.call('HINCRBY', KEYS[1], 'attempts', 1), known[3] or ''}`)

// claim takes an execution that has not started, from whoever has it. The first claim makes the record.
func (r records) claim(ctx context.Context, t ticket, digest string) (claim, error) {
	answer, err := claimScript.Run(ctx, r.redis, t.keys(), t.owner, unfinishedLimit.Milliseconds(), digest).Slice()
	if err != nil {
		return claim{}, err
	}
	c := claim{}
	if len(answer) == 4 {
		state, _ := answer[0].(string)
		c.state = State(state)
		c.owner, _ = answer[1].(string)
		c.attempts, _ = answer[2].(int64)
		c.reason, _ = answer[3].(string)
	}
	if c.state == "conflict" {
		return claim{}, ErrConflict
	}
	return c, nil
}

var startScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner')
if known[2] ~= ARGV[1] or (known[1] ~= 'claimed' and known[1] ~= 'started') then return 0 end
redis.call('HSET', KEYS[1], 'state', 'started')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`)

// start writes down that the step's code may begin. It is false where somebody else has the execution.
func (r records) start(ctx context.Context, t ticket) (bool, error) {
	return startScript.Run(ctx, r.redis, t.keys(), t.owner, unfinishedLimit.Milliseconds()).Bool()
}

var releaseScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner')
if known[2] ~= ARGV[1] or (known[1] ~= 'claimed' and known[1] ~= 'started') then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'reason', ARGV[2])
redis.call('HDEL', KEYS[1], 'owner')
if ARGV[3] == '0' then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
return 1`)

// release gives an execution back whose code this attempt has not started and will not start.
func (r records) release(ctx context.Context, t ticket, reason string, counted bool) error {
	return releaseScript.Run(ctx, r.redis, t.keys(), t.owner, reason, counted).Err()
}

var finishScript = redis.NewScript(`
local known = redis.call('HMGET', KEYS[1], 'state', 'owner')
if known[1] and known[2] ~= ARGV[1] then return '' end
if known[1] == 'finished' then return redis.call('HGET', KEYS[1], 'outcome') end
redis.call('HSET', KEYS[1], 'state', 'finished', 'owner', ARGV[1], 'outcome', ARGV[2], 'result', ARGV[3], 'finished_at', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return ARGV[2]`)

// finish writes down how the execution of a ticket ended, and returns the outcome that stands: another where it was ended on
// the ticket's behalf before, and none where somebody else has it. A record that Redis has lost meanwhile is made anew: what has
// run is not to run again.
func (r records) finish(ctx context.Context, t ticket, e ending, keep time.Duration) (stands string, err error) {
	return finishScript.Run(ctx, r.redis, t.keys(), t.owner, e.outcome, []byte(e.result), e.at.UnixMilli(), keep.Milliseconds()).Text()
}

var settleScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[1], 'settled', '1')`)

// settle writes down that nothing more is to be done about an execution.
func (r records) settle(ctx context.Context, business, id string) error {
	return settleScript.Run(ctx, r.redis, []string{recordKey(business, id)}).Err()
}

// ending is how an execution ended.
type ending struct {
	outcome string
	result  json.RawMessage
	at      time.Time
}

// entry is a record as it is read.
type entry struct {
	ticket
	state   State
	settled bool
	ending
}

func (r records) read(ctx context.Context, business, id string) (entry, error) {
	var h struct {
		State    string `redis:"state"`
		Owner    string `redis:"owner"`
		Outcome  string `redis:"outcome"`
		Result   string `redis:"result"`
		Finished int64  `redis:"finished_at"`
		Settled  string `redis:"settled"`
	}
	err := r.redis.HMGet(ctx, recordKey(business, id), "state", "owner", "outcome", "result", "finished_at", "settled").Scan(&h)
	if err != nil {
		return entry{}, fmt.Errorf("read the record of execution %s: %w", id, err)
	}
	return entry{
		ticket{business, id, h.Owner}, State(h.State), h.Settled != "",
		ending{h.Outcome, json.RawMessage(h.Result), time.UnixMilli(h.Finished)},
	}, nil
}
