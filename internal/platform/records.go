package platform

import (
	"cmp"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
)

// field is one named value of a record. Numbers keep all their digits.
type field struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
}

// record is one entity of a custom object. A stored record is never changed, only replaced.
type record struct {
	ID        string    `json:"id"`
	Object    string    `json:"object"`
	Fields    []field   `json:"fields"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	CreatedBy string    `json:"created_by"` // the service account's id
	UpdatedBy string    `json:"updated_by"`
}

func (r *record) value(name string) (any, bool) {
	i := slices.IndexFunc(r.Fields, func(f field) bool { return f.Name == name })
	if i < 0 {
		return nil, false
	}
	return r.Fields[i].Value, true
}

// with returns the fields of a record after changes.
func with(fields, changes []field) []field {
	fields = slices.Clone(fields)
	for _, change := range changes {
		if i := slices.IndexFunc(fields, func(f field) bool { return f.Name == change.Name }); i >= 0 {
			fields[i] = change
		} else {
			fields = append(fields, change)
		}
	}
	return fields
}

// table identifies the records of one object in one business.
type table struct{ businessID, object string }

// recordStore keeps records in memory, oldest first.
type recordStore struct {
	mu   sync.RWMutex
	rows map[table][]*record
}

func newRecordStore() *recordStore { return &recordStore{rows: map[table][]*record{}} }

func (s *recordStore) all(t table) []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.rows[t])
}

func (s *recordStore) insert(t table, r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[t] = append(s.rows[t], r)
}

func (s *recordStore) find(t table, id string) *record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if i := s.index(t, id); i >= 0 {
		return s.rows[t][i]
	}
	return nil
}

// replace replaces a record by the result of change. It returns nil if the record does not exist.
func (s *recordStore) replace(t table, id string, change func(record) *record) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.index(t, id)
	if i < 0 {
		return nil
	}
	s.rows[t][i] = change(*s.rows[t][i])
	return s.rows[t][i]
}

func (s *recordStore) remove(t table, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.index(t, id)
	if i < 0 {
		return false
	}
	s.rows[t] = slices.Delete(s.rows[t], i, i+1)
	return true
}

func (s *recordStore) index(t table, id string) int {
	return slices.IndexFunc(s.rows[t], func(r *record) bool { return r.ID == id })
}

// tableOf finds the table that a call is about. If the object does not exist, it writes the response.
func tableOf(c *gin.Context) (table, bool) {
	object, ok := findObject(c.Param("object"))
	if !ok {
		refuse(c, http.StatusNotFound, "not_found", "there is no custom object %q; GET /custom-objects lists them",
			c.Param("object"))
	}
	return table{callerOf(c).BusinessID, object.Name}, ok
}

var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// readFields reads {"fields": [{"name", "value"}]}. If the body is invalid, it writes the response.
func readFields(c *gin.Context) ([]field, bool) {
	var body struct {
		Fields *[]map[string]any `json:"fields"`
	}
	if !readBody(c, &body) {
		return nil, false
	}
	errs := fieldErrors{}
	var fields []field
	if body.Fields == nil {
		errs.add("fields", "required: a list of {\"name\", \"value\"}")
		body.Fields = &[]map[string]any{}
	}
	for i, given := range *body.Fields {
		at := fmt.Sprintf("fields[%d]", i)
		name, _ := given["name"].(string)
		value, hasValue := given["value"]
		switch {
		case !fieldName.MatchString(name):
			errs.add(at+".name", "required: lower case letters, digits and '_', a letter first, 64 at most")
		case slices.ContainsFunc(fields, func(f field) bool { return f.Name == name }):
			errs.add(at+".name", "%q is given twice", name)
		case !hasValue:
			errs.add(at+".value", "required; null is a value")
		}
		fields = append(fields, field{name, value})
	}
	if len(errs) > 0 {
		badRequest(c, errs)
		return nil, false
	}
	return fields, true
}

func sendRecord(c *gin.Context, status int, r *record) {
	c.JSON(status, struct {
		*record
		PerformedBy performer `json:"performed_by"`
	}{r, performedBy(c)})
}

func noRecord(c *gin.Context) {
	refuse(c, http.StatusNotFound, "not_found", "there is no record %q in %q", c.Param("id"), c.Param("object"))
}

func (p *Platform) createRecord(c *gin.Context) {
	t, ok := tableOf(c)
	if !ok {
		return
	}
	fields, ok := readFields(c)
	if !ok {
		return
	}
	now, account := time.Now().UTC(), callerOf(c).AccountID
	r := &record{
		ID: uuid.NewString(), Object: t.object, Fields: with([]field{}, fields),
		CreatedAt: now, UpdatedAt: now, CreatedBy: account, UpdatedBy: account,
	}
	p.records.insert(t, r)
	sendRecord(c, http.StatusCreated, r)
}

func (p *Platform) readRecord(c *gin.Context) {
	t, ok := tableOf(c)
	if !ok {
		return
	}
	if r := p.records.find(t, c.Param("id")); r != nil {
		sendRecord(c, http.StatusOK, r)
		return
	}
	noRecord(c)
}

func (p *Platform) patchRecord(c *gin.Context) {
	t, ok := tableOf(c)
	if !ok {
		return
	}
	fields, ok := readFields(c)
	if !ok {
		return
	}
	account := callerOf(c).AccountID
	r := p.records.replace(t, c.Param("id"), func(r record) *record {
		r.Fields = with(r.Fields, fields)
		r.UpdatedAt, r.UpdatedBy = time.Now().UTC(), account
		return &r
	})
	if r == nil {
		noRecord(c)
		return
	}
	sendRecord(c, http.StatusOK, r)
}

func (p *Platform) deleteRecord(c *gin.Context) {
	t, ok := tableOf(c)
	if !ok {
		return
	}
	if !p.records.remove(t, c.Param("id")) {
		noRecord(c)
		return
	}
	c.Status(http.StatusNoContent)
}

func (p *Platform) listRecords(c *gin.Context) {
	if t, ok := tableOf(c); ok {
		sendPage(c, p.records.all(t))
	}
}

// filter compares one field of a record. Text is compared without regard to case.
type filter struct {
	Field     string `json:"field"`
	Condition string `json:"condition"`
	Value     any    `json:"value"`
}

// conditions maps the conditions of filters to their functions.
var conditions = map[string]func(have, want any) bool{
	"=":        equal,
	"!=":       func(have, want any) bool { return !equal(have, want) },
	"contains": func(have, want any) bool { return strings.Contains(fold(have), fold(want)) },
}

func equal(have, want any) bool {
	return reflect.DeepEqual(have, want) || have != nil && want != nil && fold(have) == fold(want)
}

func fold(v any) string { return strings.ToLower(fmt.Sprint(v)) }

// searchRecords lists the records that contain the text in any field and match all filters, in the requested order.
func (p *Platform) searchRecords(c *gin.Context) {
	t, ok := tableOf(c)
	if !ok {
		return
	}
	var body struct {
		Search   string   `json:"search"`
		Filters  []filter `json:"filters"`
		Ordering string   `json:"ordering"` // a field's name, created_at or updated_at; a leading '-' means descending
	}
	if !readBody(c, &body) {
		return
	}
	errs := fieldErrors{}
	for i, f := range body.Filters {
		if conditions[f.Condition] == nil {
			errs.add(fmt.Sprintf("filters[%d].condition", i), "expected =, != or contains, got %q", f.Condition)
		}
		if !fieldName.MatchString(f.Field) {
			errs.add(fmt.Sprintf("filters[%d].field", i), "required: a field's name")
		}
	}
	order, descending := strings.CutPrefix(body.Ordering, "-")
	if order != "" && !fieldName.MatchString(order) {
		errs.add("ordering", "expected a field's name, created_at or updated_at, got %q", body.Ordering)
	}
	if len(errs) > 0 {
		badRequest(c, errs)
		return
	}
	found := slices.DeleteFunc(p.records.all(t), func(r *record) bool {
		return !matches(r, body.Search, body.Filters)
	})
	if order != "" {
		slices.SortStableFunc(found, func(a, b *record) int {
			if descending {
				a, b = b, a
			}
			return compare(sortKey(a, order), sortKey(b, order))
		})
	}
	sendPage(c, found)
}

func matches(r *record, text string, filters []filter) bool {
	for _, f := range filters {
		have, _ := r.value(f.Field)
		if !conditions[f.Condition](have, f.Value) {
			return false
		}
	}
	return text == "" || slices.ContainsFunc(r.Fields, func(f field) bool {
		return f.Value != nil && strings.Contains(fold(f.Value), fold(text))
	})
}

// sortKey returns the value by which a record is sorted: absent and null come first.
func sortKey(r *record, by string) any {
	switch by {
	case "created_at":
		return r.CreatedAt
	case "updated_at":
		return r.UpdatedAt
	}
	value, _ := r.value(by)
	return value
}

// compare orders times and numbers by size, and everything else as text.
func compare(a, b any) int {
	if x, ok := a.(time.Time); ok {
		return x.Compare(b.(time.Time))
	}
	x, errX := strconv.ParseFloat(fold(a), 64)
	y, errY := strconv.ParseFloat(fold(b), 64)
	switch {
	case a == nil || b == nil:
		return cmp.Compare(rank(a), rank(b))
	case errX == nil && errY == nil:
		return cmp.Compare(x, y)
	}
	return strings.Compare(fold(a), fold(b))
}

func rank(v any) int {
	if v == nil {
		return 0
	}
	return 1
}
