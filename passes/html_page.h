// The page of html_report.cpp, from html_page.html; MOEC_DATA in it stands for
// the data.
#pragma once

namespace moec {

extern const char* const kHtmlPage;

}  // namespace moec
