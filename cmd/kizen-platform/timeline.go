package main

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

// timelineLength is about how many of an account's calls are kept.
const timelineLength = 1000

// timeline keeps what accounts did in Redis Streams, one an account:
//
//	kizen:{BUSINESS}:timeline:ACCOUNT
type timeline struct{ redis redis.UniversalClient }

func timelineKey(businessID, accountID string) string {
	return "kizen:{" + businessID + "}:timeline:" + accountID
}

// event is one call of an account.
type event struct {
	ID          string    `json:"id"` // of the stream's entry; later ones are greater
	At          time.Time `json:"at"`
	ExecutionID string    `json:"execution_id"`
	Method      string    `json:"method"`
	Path        string    `json:"path"`
	Status      int       `json:"status"`
}

func (t timeline) add(ctx context.Context, id minter.Identity, e event) error {
	err := t.redis.XAdd(ctx, &redis.XAddArgs{
		Stream: timelineKey(id.BusinessID, id.AccountID), MaxLen: timelineLength, Approx: true,
		Values: []any{"execution_id", id.ExecutionID, "method", e.Method, "path", e.Path, "status", e.Status},
	}).Err()
	if err != nil {
		return fmt.Errorf("add to the timeline of account %s: %w", id.AccountID, err)
	}
	return nil
}

// read returns up to limit events before an id, newest first, of one execution unless that is empty.
func (t timeline) read(ctx context.Context, businessID, accountID, execution, before string, limit int) ([]event, error) {
	end := "+"
	if before != "" {
		end = "(" + before
	}
	events := []event{}
	for len(events) < limit {
		entries, err := t.redis.XRevRangeN(ctx, timelineKey(businessID, accountID), end, "-", maxPageSize).Result()
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
	return event{
		ID: entry.ID, At: time.UnixMilli(at).UTC(), ExecutionID: text("execution_id"),
		Method: text("method"), Path: text("path"), Status: status,
	}
}

// record adds each call of an account to its timeline once it is answered. A store that is down then costs the event, not the
// answer.
func (p *platform) record(c *gin.Context) {
	c.Next()
	who := callerOf(c)
	if kind, _ := policy.FindAccountType(who.AccountType); who.principal == nil || !kind.Timeline {
		return
	}
	ctx := context.WithoutCancel(c.Request.Context())
	e := event{Method: c.Request.Method, Path: telemetry.Redact(c.Request.URL.EscapedPath()[len(apiRoot):]), Status: c.Writer.Status()}
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

// readTimeline answers what an account did, newest first.
func (p *platform) readTimeline(c *gin.Context) {
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

// named finds the name under which an account, archived or not, or a person appears.
func (p *platform) named(ctx context.Context, businessID, id string) (performer, error) {
	if m, ok := findPerson(id); ok {
		return performer{ID: m.ID, Name: m.FullName, AccountType: m.AccountType}, nil
	}
	a, err := p.accounts.find(ctx, businessID, id)
	return performer{ID: a.ID, Name: a.Name, AccountType: a.AccountType}, err
}
