# Counts the business's custom objects and names the one with the most records.
response = kizen.api.get("/custom-objects")
response.raise_for_status()
objects = response.json()["results"]

for item in objects:
    found = kizen.api.get(f"/records/{item['name']}", params={"page_size": 1})
    found.raise_for_status()
    item["records"] = found.json()["count"]
    outputs.log(f"{item['object_name']}: {item['records']} records")

outputs.number_of_objects = len(objects)
outputs.largest_object = max(objects, key=lambda item: item["records"])["object_name"]
