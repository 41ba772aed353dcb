package serve

import (
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/internal/crowd"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/hosts"
	"github.com/kizen/kizen-sidecar/internal/ids"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// Config of a [Server]. Executions, Queue and Callers are required.
type Config struct {
	Executions *Registry
	Queue      *queue.Queue
	Callers    *Callers
	// Limits are the default limits of an execution.
	Limits runner.Limits
	// Hosts are the host names that requests may use.
	Hosts hosts.Names
	// Secrets provides the secrets that steps may be granted; may be nil.
	Secrets execution.Secrets
	// CheckIdentity refuses an unknown account type. If it is nil, every type is accepted.
	CheckIdentity func(minter.Identity) error
	// Callbacks reports that callbacks are delivered; otherwise requests with a callback URL are refused.
	Callbacks bool
	// Once prevents an ID that a caller has chosen from running twice. If it is nil, only Executions prevents this, as
	// long as it remembers the ID.
	Once Once
	// UI serves the execution page at /ui/; the page removes APIRoot from the URLs of calls.
	UI      bool
	APIRoot string
	// MaxBody is the largest request in bytes; default 8 MiB.
	MaxBody int64
	// ArrivingBytes is the maximal total size of large incoming bodies, and of large responses without the kept
	// documents in them; default 64 MiB. Even if other businesses use it all, a business can still use its own share.
	ArrivingBytes int64
	// BodyTimeout limits the arrival of a request's body, WriteTimeout how long a caller may take to read a response
	// or one event of a stream; default 30 s each.
	BodyTimeout, WriteTimeout time.Duration
	Log                       *slog.Logger
}

// Server is the HTTP API for orchestrators.
type Server struct {
	config Config
	bodies *queue.Budget // for large incoming bodies, and for large responses that are not kept documents
}

// NewServer returns a server for config.
func NewServer(config Config) *Server {
	if config.MaxBody == 0 {
		config.MaxBody = 8 << 20
	}
	if config.ArrivingBytes == 0 {
		config.ArrivingBytes = 64 << 20
	}
	if config.BodyTimeout == 0 {
		config.BodyTimeout = 30 * time.Second
	}
	if config.WriteTimeout == 0 {
		config.WriteTimeout = 30 * time.Second
	}
	if config.Secrets == nil {
		config.Secrets = execution.SecretsByBusiness(nil)
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{config, queue.NewBudget(config.ArrivingBytes)}
}

// route is one endpoint, which openapi.json must describe.
type route struct {
	method, path string
	handle       gin.HandlerFunc
}

func (s *Server) routes() []route {
	routes := []route{
		{http.MethodPost, "/api/coderunner/run", s.run},
		{http.MethodPost, "/executions", s.submit},
		{http.MethodGet, "/executions", s.list},
		{http.MethodGet, "/executions/:id", s.show},
		{http.MethodGet, "/executions/:id/events", s.events},
		{http.MethodDelete, "/executions/:id", s.cancel},
	}
	if s.config.UI {
		routes = append(routes, route{http.MethodGet, "/executions/:id/record", s.record})
	}
	return routes
}

// Handler serves the API.
func (s *Server) Handler() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.HandleMethodNotAllowed = true
	engine.Use(gin.CustomRecoveryWithWriter(nil, s.recovered), s.arriving, s.answering, sanitise, s.keepPagesOut)
	engine.NoRoute(func(c *gin.Context) { refuse(c, http.StatusNotFound, "not_found", "no such path") })
	engine.NoMethod(func(c *gin.Context) {
		refuse(c, http.StatusMethodNotAllowed, "method_not_allowed", "use "+c.Writer.Header().Get("Allow"))
	})
	handle(engine, route{http.MethodGet, "/openapi.json", s.describe})
	api := engine.Group("/", s.guard)
	for _, r := range s.routes() {
		handle(api, r)
	}
	if s.config.UI {
		s.serveUI(engine)
	}
	return engine
}

// handle registers a route. Every GET route also answers HEAD (RFC 9110 section 9.3.2): net/http omits the body.
func handle(on gin.IRoutes, r route) {
	on.Handle(r.method, r.path, r.handle)
	if r.method == http.MethodGet {
		on.Handle(http.MethodHead, r.path, r.handle)
	}
}

// arriving sets the deadline for the body, which is read to its end even if the request is refused.
func (s *Server) arriving(c *gin.Context) {
	_ = http.NewResponseController(c.Writer).SetReadDeadline(time.Now().Add(s.config.BodyTimeout))
}

// answering sets the deadline for the caller to read the response, counted from now.
func (s *Server) answering(c *gin.Context) {
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(s.config.WriteTimeout))
}

// waiting removes the deadline for the start of the response. Use it when the request has arrived.
func (s *Server) waiting(c *gin.Context) {
	controller := http.NewResponseController(c.Writer)
	_, _ = controller.SetReadDeadline(time.Time{}), controller.SetWriteDeadline(time.Time{})
}

// callerKey is the key under which guard stores the caller for the handlers.
const callerKey = "caller"

// keepPagesOut refuses cross-site requests from web pages. A browser may add a client certificate to such requests,
// and a proxy in front of the sidecar a token, so this applies to every kind of caller.
func (s *Server) keepPagesOut(c *gin.Context) {
	if !s.config.Hosts.Allow(c.Request.Host) {
		c.Header("Connection", "close")
		refuse(c, http.StatusMisdirectedRequest, "unknown_host", hosts.Refusal(c.Request.Host))
		return
	}
	if crossOrigin.Check(c.Request) != nil {
		refuse(c, http.StatusForbidden, "cross_origin", "pages of other sites may not call this sidecar")
	}
}

var crossOrigin = http.NewCrossOriginProtection()

// guard authenticates callers.
func (s *Server) guard(c *gin.Context) {
	caller, err := s.config.Callers.identify(c.Request)
	if err != nil {
		c.Header("WWW-Authenticate", "Bearer")
		refuse(c, http.StatusUnauthorized, "unknown_caller", err.Error())
		return
	}
	c.Set(callerKey, caller)
}

func callerOf(c *gin.Context) *Caller { return c.MustGet(callerKey).(*Caller) }

// run is POST /api/coderunner/run: it responds when the step has ended, and cancels it if the caller disconnects.
func (s *Server) run(c *gin.Context) {
	request, body, data, ok := s.read(c)
	if !ok {
		return
	}
	var refused runner.FieldErrors
	for name, value := range map[string]string{"execution_id": body.ExecutionID, "callback_url": body.CallbackURL} {
		if value != "" {
			refused.Add("is for POST /executions; leave it out here", name)
		}
	}
	if err := refused.Err(); err != nil {
		refuseRequest(c, err)
		return
	}
	request.Identity.ExecutionID = uuid.NewString()
	e, err := s.config.Executions.Submit(request, data, "")
	if err != nil {
		s.refuseSubmission(c, err)
		return
	}
	s.waiting(c)
	defer crowd.Hold(c.Request)()
	select {
	case <-e.Done():
		s.answering(c)
	case <-c.Request.Context().Done():
		e.Cancel()
		return // the caller has disconnected
	}
	defer s.reading(c, e)()
	outcome, err := e.Outcome()
	if err != nil {
		s.refuseSubmission(c, err)
		return
	}
	c.Data(outcome.Status(), "application/json", e.Snapshot().Result)
}

// reading keeps a finished execution in memory while the response to a request is sent, until done is called. If such
// executions exceed their limit, the response is cut off.
func (s *Server) reading(c *gin.Context, e *Execution) (done func()) {
	controller := http.NewResponseController(c.Writer)
	return s.config.Executions.Reading(e, func() { _ = controller.SetWriteDeadline(time.Unix(1, 0)) })
}

// submit is POST /executions.
func (s *Server) submit(c *gin.Context) {
	request, body, data, ok := s.read(c)
	if !ok {
		return
	}
	if body.ExecutionID == "" {
		request.Identity.ExecutionID = uuid.NewString()
	}
	if body.CallbackURL != "" && !s.config.Callbacks {
		refuseFields(c, "callback_url", "callbacks are not configured; start serve with --webhook-secret-file")
		return
	}
	if body.ExecutionID != "" && s.config.Once != nil {
		if err := s.once(c.Request.Context(), &request, data); err != nil {
			s.refuseSubmission(c, err)
			return
		}
	}
	e, err := s.config.Executions.Submit(request, data, body.CallbackURL)
	if err != nil {
		s.refuseSubmission(c, err)
		return
	}
	c.Header("Location", "/executions/"+e.ID())
	c.JSON(http.StatusAccepted, e.Snapshot())
}

// read decodes and validates a request, and refuses an invalid one. data is its body.
func (s *Server) read(c *gin.Context) (request execution.Request, body execution.Body, data []byte, ok bool) {
	data, release, err := s.readBody(c)
	defer release()
	if err != nil {
		s.refuseBody(c, err)
		return request, body, nil, false
	}
	if body, err = execution.DecodeBody(data); err != nil {
		refuseRequest(c, err)
		return request, body, nil, false
	}
	id, err := callerOf(c).identity(c.Request.Header, body)
	if err == nil {
		err = s.checkIdentity(id)
	}
	if err != nil {
		refuseRequest(c, err)
		return request, body, nil, false
	}
	job, limits, err := body.Job(id.BusinessID, s.config.Secrets, s.config.Limits)
	if err != nil {
		refuseRequest(c, err)
		return request, body, nil, false
	}
	var tracestate string
	if job.Traceparent == "" {
		job.Traceparent, tracestate = c.GetHeader("traceparent"), c.GetHeader("tracestate")
		if len(job.Traceparent) > execution.MaxTraceparent {
			job.Traceparent, tracestate = "", "" // too long to be valid
		}
	}
	return execution.Request{Identity: id, Name: body.Name, Job: job, Limits: limits,
		Tracestate: tracestate}, body, data, true
}

// checkIdentity refuses invalid IDs, keyed by field.
func (s *Server) checkIdentity(id minter.Identity) error {
	var refused runner.FieldErrors
	for _, field := range []struct {
		name, value string
		optional    bool
	}{{"business_id", id.BusinessID, false}, {"user_id", id.AccountID, false}, {"execution_id", id.ExecutionID, true}} {
		if !ids.Valid(field.value) && (field.value != "" || !field.optional) {
			refused.Add(ids.Rule, field.name)
		}
	}
	if s.config.CheckIdentity != nil {
		refused.Merge(s.config.CheckIdentity(id), "account_type")
	}
	return refused.Err()
}

// list is GET /executions: the executions of the caller's business, the latest first.
func (s *Server) list(c *gin.Context) {
	id, ok := s.business(c)
	if !ok {
		return
	}
	state, outcome := c.Query("state"), c.Query("outcome")
	if !slices.Contains([]State{"", Queued, Running, Finished}, State(state)) {
		refuseFields(c, "state", "must be queued, running or finished")
		return
	}
	all := s.config.Executions.Recent(id)
	results := []Snapshot{}
	for _, e := range all {
		snapshot := e.Snapshot()
		snapshot.Result = nil
		if (state == "" || state == string(snapshot.State)) && (outcome == "" || outcome == string(snapshot.Outcome)) {
			results = append(results, snapshot)
		}
		if len(results) == 100 {
			break
		}
	}
	c.JSON(http.StatusOK, gin.H{"results": results, "count": len(results)})
}

// business returns the business of a request without a body.
func (s *Server) business(c *gin.Context) (string, bool) {
	id, err := callerOf(c).identity(c.Request.Header, execution.Body{})
	if err != nil {
		refuseRequest(c, err)
		return "", false
	}
	return id.BusinessID, true
}

// find returns the execution that a path names. An execution of another business counts as not found.
func (s *Server) find(c *gin.Context) (*Execution, bool) {
	business, ok := s.business(c)
	if !ok {
		return nil, false
	}
	e, ok := s.config.Executions.Get(business, c.Param("id"))
	if !ok {
		refuse(c, http.StatusNotFound, "not_found", "no execution of this business has this id, or it is no longer kept")
	}
	return e, ok
}

func (s *Server) show(c *gin.Context) {
	e, ok := s.find(c)
	if !ok {
		return
	}
	defer s.reading(c, e)()
	snapshot := e.Snapshot()
	result := snapshot.Result
	snapshot.Result = nil
	s.respond(c, e.BusinessID(), snapshot, member{"result", result})
}

// cancel revokes the key, then kills the step. It responds at once; the execution ends shortly after.
func (s *Server) cancel(c *gin.Context) {
	e, ok := s.find(c)
	if !ok {
		return
	}
	e.Cancel()
	c.JSON(http.StatusAccepted, e.Snapshot())
}

// describe serves the description of the API without authentication.
func (s *Server) describe(c *gin.Context) {
	document, err := openAPI()
	if err != nil {
		s.recovered(c, err)
		return
	}
	c.Data(http.StatusOK, "application/json", document)
}

// recovered responds to a request whose handler panicked.
func (s *Server) recovered(c *gin.Context, cause any) {
	s.config.Log.ErrorContext(c.Request.Context(), "a handler panicked", "route", c.FullPath(), "cause", cause)
	refuse(c, http.StatusInternalServerError, "internal", "the sidecar failed; its log says why")
}
