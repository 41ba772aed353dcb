package platform

import (
	"github.com/gin-gonic/gin"
)

// customObject describes a kind of record.
type customObject struct {
	ID         string `json:"id"`
	Name       string `json:"name"` // as in /records/{name}
	ObjectName string `json:"object_name"`
	EntityName string `json:"entity_name"`
	ObjectType string `json:"object_type"` // standard, or pipeline: its records move through stages
}

// customObjects lists the objects that every business has.
var customObjects = []customObject{
	{"c9bf9e57-1685-4c89-bafb-ff5af830be8a", "contacts", "Contacts", "Contact", "standard"},
	{"0a4f7f0e-0f3c-4f5e-8a55-5f0a2f6f4c01", "companies", "Companies", "Company", "standard"},
	{"0a4f7f0e-0f3c-4f5e-8a55-5f0a2f6f4c02", "deals", "Deals", "Deal", "pipeline"},
	{"0a4f7f0e-0f3c-4f5e-8a55-5f0a2f6f4c03", "orders", "Orders", "Order", "standard"},
	{"0a4f7f0e-0f3c-4f5e-8a55-5f0a2f6f4c04", "subscriptions", "Subscriptions", "Subscription", "standard"},
	{"0a4f7f0e-0f3c-4f5e-8a55-5f0a2f6f4c05", "support_tickets", "Support Tickets", "Support Ticket", "pipeline"},
	{"0a4f7f0e-0f3c-4f5e-8a55-5f0a2f6f4c06", "invoices", "Invoices", "Invoice", "standard"},
}

// findObject finds an object by its name or ID.
func findObject(nameOrID string) (customObject, bool) {
	for _, object := range customObjects {
		if object.Name == nameOrID || object.ID == nameOrID {
			return object, true
		}
	}
	return customObject{}, false
}

func (p *Platform) listObjects(c *gin.Context) { sendPage(c, customObjects) }
