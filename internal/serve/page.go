package serve

import (
	"encoding/json"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/ui"
)

// uiPrefix is the path prefix of the page.
const uiPrefix = "/ui/"

// serveUI adds the page. Its files contain no data, so they need no authentication; the page asks for a token if its
// requests to the API need one.
func (s *Server) serveUI(engine *gin.Engine) {
	assets := ui.Handler(uiPrefix)
	handle(engine, route{http.MethodGet, "/ui", func(c *gin.Context) { c.Redirect(http.StatusFound, uiPrefix) }})
	handle(engine, route{http.MethodGet, uiPrefix + "*file",
		func(c *gin.Context) { assets.ServeHTTP(c.Writer, c.Request) }})
}

// record is GET /executions/{id}/record: the data of an execution for the page.
func (s *Server) record(c *gin.Context) {
	e, ok := s.find(c)
	if !ok {
		return
	}
	defer s.reading(c, e)()
	snapshot := e.Snapshot()
	dequeued := snapshot.StartedAt
	if dequeued.IsZero() {
		dequeued = snapshot.FinishedAt // it never got a slot
	}
	about := ui.About{
		ID: snapshot.ID, Name: snapshot.Name, Runtime: snapshot.Runtime, BusinessID: snapshot.BusinessID,
		AccountID: e.AccountID(), AccountType: snapshot.AccountType, APIRoot: s.config.APIRoot, Traceparent: e.Traceparent(),
		State: string(snapshot.State), Queued: snapshot.QueuedAt, Dequeued: dequeued,
		Failure: snapshot.Failure,
	}
	var ended execution.Ended
	if snapshot.Result != nil {
		ended, _ = e.Ended() // it has a result, so the error is nil
	}
	record := recordHead{Record: ui.NewRecord(about, ended, nil)}
	source, inputs := e.Shown()
	if inputs == nil {
		inputs = json.RawMessage("null")
	}
	result := snapshot.Result
	if result == nil {
		result = json.RawMessage("null")
	}
	asked := e.Asked()
	record.OutputTypes, record.Secrets, record.TimeoutMS = ui.OutputTypes(asked.Outputs), asked.Secrets,
		asked.Limit.Milliseconds()
	s.respond(c, e.BusinessID(), record, member{"result", result}, member{"source", source}, member{"inputs", inputs})
}

// recordHead contains the small members of a record.
type recordHead struct {
	ui.Record
	Result *struct{} `json:"result,omitempty"`
	Source *struct{} `json:"source,omitempty"`
	Inputs *struct{} `json:"inputs,omitempty"`
}
