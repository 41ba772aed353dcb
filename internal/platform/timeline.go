package platform

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// timeline keeps the calls of accounts, and the changes to them, in Redis Streams, see [minter.TimelineKey].
type timeline struct{ redis redis.UniversalClient }

// event is one call of an account, or one call that changed it.
type event struct {
	ID          string    `json:"id"` // of the stream's entry; later ones are greater
	At          time.Time `json:"at"`
	ExecutionID string    `json:"execution_id"`
	Method      string    `json:"method"`
	Path        string    `json:"path"`
	Status      int       `json:"status"`
	// Action is the change to the account, and By is who made it. Both are empty for the account's own calls. An
	// operator acts without the API, so such an event has no method, path and status.
	Action string     `json:"action,omitempty"`
	By     *performer `json:"by,omitempty"`
}

func (t timeline) add(ctx context.Context, id minter.Identity, e event) error {
	values := []any{"execution_id", id.ExecutionID, "method", e.Method, "path", e.Path, "status", e.Status}
	if e.By != nil {
		values = append(values, "action", e.Action, "by", e.By.ID, "by_name", e.By.Name, "by_type", e.By.AccountType)
	}
	err := t.redis.XAdd(ctx, &redis.XAddArgs{
		Stream: minter.TimelineKey(id.BusinessID, id.AccountID), MaxLen: minter.TimelineLength, Approx: true, Values: values,
	}).Err()
	if err != nil {
		return fmt.Errorf("add to the timeline of account %s: %w", id.AccountID, err)
	}
	return nil
}

// read returns up to limit events before an ID, newest first. If execution is not empty, it returns only events of
// that execution.
func (t timeline) read(ctx context.Context, businessID, accountID, execution, before string,
	limit int) ([]event, error) {
	end := "+"
	if before != "" {
		end = "(" + before
	}
	events := []event{}
	for len(events) < limit {
		entries, err := t.redis.XRevRangeN(ctx, minter.TimelineKey(businessID, accountID), end, "-", maxPageSize).Result()
		if err != nil {
			return nil, fmt.Errorf("read the timeline of account %s: %w", accountID, err)
		}
		for _, entry := range entries {
			if e := parseEvent(entry); execution == "" || e.ExecutionID == execution {
				events = append(events, e)
			}
			end = "(" + entry.ID
		}
		if len(entries) < maxPageSize {
			break
		}
	}
	return events[:min(limit, len(events))], nil
}

func parseEvent(entry redis.XMessage) event {
	text := func(name string) string { s, _ := entry.Values[name].(string); return s }
	status, _ := strconv.Atoi(text("status"))
	milliseconds, _, _ := strings.Cut(entry.ID, "-")
	at, _ := strconv.ParseInt(milliseconds, 10, 64)
	e := event{
		ID: entry.ID, At: time.UnixMilli(at).UTC(), ExecutionID: text("execution_id"),
		Method: text("method"), Path: text("path"), Status: status, Action: text("action"),
	}
	if by := text("by"); by != "" {
		e.By = &performer{ID: by, Name: text("by_name"), AccountType: text("by_type")}
		if e.Method != "" { // otherwise ExecutionID is that on which an operator acted
			e.By.ExecutionID = e.ExecutionID
		}
	}
	return e
}

// changedKey is the key under which a handler stores the accounts that a call has changed.
const changedKey = "changed"

// change is the effect of a call on an account.
type change struct{ accountID, action string }

// changed adds the call to the timeline of an account that it changed. action defaults to the operation's name.
func (p *Platform) changed(c *gin.Context, accountID, action string) {
	if action == "" {
		path := c.Request.URL.EscapedPath()[len(apiRoot):]
		if operations := p.engine.Operations(c.Request.Method, path); len(operations) > 0 {
			action = operations[0]
		}
	}
	changes, _ := c.Value(changedKey).([]change)
	c.Set(changedKey, append(changes, change{accountID, action}))
}

// record adds each call to the timeline of its account once it is answered, and to the timelines of the accounts that
// it changed. If the store is down, the event is lost, but not the response.
func (p *Platform) record(c *gin.Context) {
	c.Next()
	who := callerOf(c)
	if who.principal == nil {
		return
	}
	ctx := context.WithoutCancel(c.Request.Context())
	e := event{Method: c.Request.Method, Path: telemetry.Redact(c.Request.URL.EscapedPath()[len(apiRoot):]),
		Status: c.Writer.Status()}
	changes, _ := c.Value(changedKey).([]change)
	for _, change := range changes {
		by := performedBy(c)
		done := e
		done.Action, done.By = change.action, &by
		to := minter.Identity{BusinessID: who.BusinessID, AccountID: change.accountID, ExecutionID: who.ExecutionID}
		if err := p.timeline.add(ctx, to, done); err != nil {
			p.log.WarnContext(ctx, "a change is missing in the timeline", "error", err)
		}
	}
	if kind, _ := policy.FindAccountType(who.AccountType); !kind.Timeline {
		return
	}
	if err := p.timeline.add(ctx, who.Identity, e); err != nil {
		p.log.WarnContext(ctx, "a call is missing in the timeline", "error", err)
	}
}

// timelinePage is one page of a timeline. Next is a path relative to the API root.
type timelinePage struct {
	Account     performer `json:"account"`
	Results     []event   `json:"results"`
	Next        *string   `json:"next"`
	PerformedBy performer `json:"performed_by"`
}

var streamID = regexp.MustCompile(`^\d{1,19}-\d{1,19}$`)

// readTimeline serves the calls of an account and the changes to it, newest first.
func (p *Platform) readTimeline(c *gin.Context) {
	errs := fieldErrors{}
	limit := queryInt(c, errs, "page_size", defaultPageSize, 1, maxPageSize)
	before := c.Query("before")
	if before != "" && !streamID.MatchString(before) {
		errs.add("before", "expected the id of an event, got %q", before)
	}
	id := c.Query("account")
	if id == "" {
		errs.add("account", "required: the id of an account")
	}
	if len(errs) > 0 {
		badRequest(c, errs)
		return
	}
	ctx, businessID := c.Request.Context(), callerOf(c).BusinessID
	about, err := p.named(ctx, businessID, id)
	if errors.Is(err, errNoAccount) {
		refuse(c, http.StatusNotFound, "not_found", "there is no account %q", id)
		return
	}
	var events []event
	if err == nil {
		events, err = p.timeline.read(ctx, businessID, id, c.Query("execution"), before, limit+1)
	}
	if err != nil {
		p.unavailable(c, err)
		return
	}
	view := timelinePage{Account: about, Results: events, PerformedBy: performedBy(c)}
	if len(events) > limit {
		view.Results = events[:limit]
		query := c.Request.URL.Query()
		query.Set("before", events[limit-1].ID)
		next := "/timeline?" + query.Encode()
		view.Next = &next
	}
	c.JSON(http.StatusOK, view)
}

// named returns the name under which an account, archived or not, or a person is shown.
func (p *Platform) named(ctx context.Context, businessID, id string) (performer, error) {
	if m, ok := findPerson(id); ok {
		return performer{ID: m.ID, Name: m.FullName, AccountType: m.AccountType}, nil
	}
	a, err := p.accounts.find(ctx, businessID, id)
	return performer{ID: a.ID, Name: a.Name, AccountType: a.AccountType}, err
}
