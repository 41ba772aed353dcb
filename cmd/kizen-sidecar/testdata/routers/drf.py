"""The guarded calls on Django REST framework, for gunicorn: drf:application."""

from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of a test", INSTALLED_APPS=["rest_framework"],
                   REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": [], "UNAUTHENTICATED_USER": None,
                                   "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]})

import django  # noqa: E402

django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.urlpatterns import format_suffix_patterns  # noqa: E402


@api_view(["POST", "PUT"])
def guarded(request, account=None, format=None):
    return Response("GUARDED", status=201)


@api_view(["GET", "POST"])
def free(request, name, format=None):
    return Response("FREE")


urlpatterns = format_suffix_patterns([
    path("api/api-keys", guarded),
    path("api/team/<str:account>/api-keys", guarded),
    path("api/business-config/import", guarded),
    path("api/records/<str:name>", free),  # any character but a slash; below it any but a line break
    path("api/records/<path:name>", free),
])

application = get_wsgi_application()
